// Runs a finished program: threads take the tasks of one phase after the other.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "program/engine.h"
#include "run/memory.h"
#include "run/sleep.h"
#include "run/threads.h"
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace visq::engine {
namespace {

constexpr const char* kKindNames[] = {
    "patches",     "concat",            "rows",           "transpose",            "shuffle", "bilinear", "average pool",
    "enter windows", "leave windows", "sample", "merge samples", "mean", "linear", "float linear",
    "convolution", "float convolution", "convolution 2d", "float convolution 2d", "scan", "fused scan", "ladder scan",
    "float scan",  "attention"};
static_assert(sizeof kKindNames / sizeof *kKindNames == kKinds, "every kind of operation has a name");

// Rounds to nearest and keeps subnormals, whatever the caller has set on its thread.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FloatMode() {}
#endif
};

// Moves this thread off the leader's processor, once: the kernel may have woken it there, and on a busy machine may leave
// both there for a whole run.
#if defined(__linux__)
int processor() { return sched_getcpu(); }
void leave(int busy) {
  cpu_set_t allowed, others;
  if (busy < 0 || sched_getcpu() != busy || sched_getaffinity(0, sizeof allowed, &allowed)) return;
  others = allowed;
  CPU_CLR(busy, &others);
  if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others)) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int processor() { return -1; }
void leave(int) {}
#endif

void need_threads(const Check& need, int threads) {
  need(threads >= 1 && threads <= kMaxThreads, "threads is ", threads, ", not between 1 and ", kMaxThreads);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// One run on several threads: a leader and its helpers.
//
// The leader opens one phase after the other in a word, (generation << 32 | first task left << 16 | end of those left).
// Whoever is free takes a task, every other thread from the front and the rest from the back. So a thread mostly gets the
// rows, or the channels, that it had in the phase before and that its cache holds.
//
// The leader waits only for tasks that a helper has taken. A helper that never wakes costs time, not correctness. Whoever
// waits spins briefly, then sleeps.
struct Engine::Run {
  Engine& engine;
  const float* images;
  int64_t batch, whole;  // the first `whole` images are taken by single threads
  float* out;
  int threads;
  std::atomic<int> joined{0}, leader_processor{-1};
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) Word done{0};    // tasks of the phase
  alignas(64) Word opened{0};  // counts phases; helpers sleep on it
  std::atomic<uint32_t> tasks_open{0}, sleeping_helpers{0};
  std::atomic<bool> leader_sleeps{false};

  static constexpr uint64_t kOver = ~uint64_t{0}, kWholeImages = 1;  // generations; phases of single images follow
  // Turns that a waiting thread spins, some 400 microseconds: longer than a phase. None where threads outnumber the
  // processors: who spins keeps the others from working.
  const int spins_before_sleep = threads <= processors() ? 16000 : 0;

  // Takes and runs one task of the open phase. Returns false where none is left.
  bool take(int index) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    if (seen == kOver) return false;
    const uint64_t first = seen >> 16 & 0xffff, end = seen & 0xffff;
    if (first >= end) return false;
    const bool front = index % 2 == 0 || seen >> 32 == kWholeImages;
    if (!ticket.compare_exchange_weak(seen, front ? seen + (1 << 16) : seen - 1, std::memory_order_acq_rel)) return true;
    work(index, static_cast<int64_t>(seen >> 32), static_cast<int64_t>(front ? first : end - 1));
    if (done.fetch_add(1) + 1 == tasks_open.load(std::memory_order_relaxed) && leader_sleeps.load()) wake_all(done);
    return true;
  }

  // Runs a task. Generations after kWholeImages are the phases of the images that are left, one image after the other.
  void work(int index, int64_t generation, int64_t task) {
    Engine& e = engine;
    Worker& worker = *e.workers_[index];
    const int64_t image_floats = e.image_floats(), width = e.output_floats();
    if (generation == kWholeImages) {
      e.run_image(worker, task, images + task * image_floats, out + task * width);
      if (task == batch - 1) e.last_worker_ = &worker;
      return;
    }
    const int64_t phases = static_cast<int64_t>(e.phases_.size());
    const int64_t image = whole + (generation - 2) / phases, phase = (generation - 2) % phases;
    // All threads work in the arena of the leader, which is the first worker.
    e.run_phase(worker, e.workers_[0]->arena, e.phases_[phase], image, task, images + image * image_floats);
  }

  void open(int index, int64_t generation, int64_t tasks) {
    done.store(0, std::memory_order_relaxed);
    tasks_open.store(static_cast<uint32_t>(tasks), std::memory_order_relaxed);
    ticket.store(static_cast<uint64_t>(generation) << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
    announce(tasks > 1);  // the leader does a single task itself
    while (take(index)) {}
    for (int spins = 0; done.load(std::memory_order_acquire) < tasks; ++spins)
      spins < spins_before_sleep ? relax() : await(tasks);
  }

  // Wakes helpers, if any sleeps and `worthwhile`.
  void announce(bool worthwhile) {
    opened.fetch_add(1);
    if (worthwhile && sleeping_helpers.load()) wake_all(opened);
  }

  // The leader sleeps until a helper finishes the phase's last task.
  void await(int64_t tasks) {
    leader_sleeps.store(true);
    const uint32_t seen = done.load();
    if (seen < tasks) sleep_while(done, seen);
    leader_sleeps.store(false);
  }

  void lead(int index) {
    Engine& e = engine;
    const int64_t phases = static_cast<int64_t>(e.phases_.size());
    leader_processor.store(processor());
    if (whole) open(index, kWholeImages, whole);
    for (int64_t image = whole; image < batch; ++image) {
      for (int64_t p = 0; p < phases; ++p) open(index, 2 + (image - whole) * phases + p, e.phases_[p].tasks);
      e.write_output(*e.workers_[0], out + image * e.output_floats());
      e.last_worker_ = e.workers_[0].get();
    }
    ticket.store(kOver, std::memory_order_release);
    announce(true);
  }

  void participate() {
    const int index = joined.fetch_add(1);
    if (index >= threads) return;
    const FloatMode mode;
    index ? help(index) : lead(index);
  }

  void help(int index) {
    leave(leader_processor.load());
    for (int spins = 0;;) {
      const uint32_t seen = opened.load();
      if (ticket.load(std::memory_order_acquire) == kOver) return;
      if (take(index)) {
        spins = 0;
      } else if (++spins < spins_before_sleep) {
        relax();
      } else {
        sleeping_helpers.fetch_add(1);
        sleep_while(opened, seen);
        sleeping_helpers.fetch_sub(1);
        spins = 0;
      }
    }
  }
};

int64_t Engine::output_floats() const {
  if (output_ < 0) return 0;
  const Tensor& t = tensors_[output_];
  return whole_output_ ? t.rows * t.width : t.width;
}

std::array<int64_t, 3> Engine::output_map() const {
  if (!whole_output_ || output_ < 0) return {};
  const Tensor& t = tensors_[output_];
  if (t.map_height) return {t.width, t.map_height, t.rows / t.map_height};
  int64_t side = 1;
  while (side * side < t.rows) ++side;
  if (side * side != t.rows) return {t.width, 0, 0};
  return {t.width, side, side};
}

void Engine::run_phase(Worker& worker, char* arena, const Phase& phase, int64_t image_index, int64_t task,
                       const float* image) {
  Frame f = {tensors_.data(), arena, image, channels_, worker.scratch};
  double start = profile_ ? now() : 0;
  const auto charge = [&](double& to) {
    if (!profile_) return;
    const double end = now();
    to += end - start;
    start = end;
  };
  const double began = start;
  const auto charge_phase = [&] {
    if (profile_) worker.phase_seconds[static_cast<size_t>(&phase - phases_.data())] += now() - began;
  };
  if (phase.scan) {
    int index = phase.first;
    for (; task >= scan_tasks(operations_[index], phase.each); ++index)
      task -= scan_tasks(operations_[index], phase.each);
    const Operation& op = operations_[index];
    const int64_t serial = image_index * static_cast<int64_t>(operations_.size()) + index;
    if (worker.prepared != serial) kernels_->prepare_scan(op, f);
    worker.prepared = serial;
    for (int64_t b = task * phase.each; b < (task + 1) * phase.each && b < scan_blocks(op); ++b)
      kernels_->scan(op, f, b);
    charge(worker.source_seconds[op.kind]);
    charge_phase();
    return;
  }
  const int64_t rows = operations_[phase.first].rows, first = task * phase.each;
  const int64_t end = first + phase.each < rows ? first + phase.each : rows;
  for (int64_t row = first; row < end; row += phase.rows) {
    const int64_t count = end - row < phase.rows ? end - row : phase.rows;
    for (int i = phase.first; i < phase.last; ++i) {
      const Operation& op = operations_[i];
      const View view = kernels_->source(op, f, row, count);
      charge(worker.source_seconds[op.kind]);
      kernels_->body(op, f, view, row, count);
      charge(worker.body_seconds[op.kind]);
    }
  }
  charge_phase();
}

void Engine::run_image(Worker& worker, int64_t index, const float* image, float* out) {
  const int64_t phases = static_cast<int64_t>(phases_.size());
  for (int64_t p = 0; p < phases; ++p)
    for (int64_t task = 0; task < phases_[p].tasks; ++task)
      run_phase(worker, worker.arena, phases_[p], index, task, image);
  write_output(worker, out);
}

void Engine::write_output(Worker& worker, float* out) {
  const Tensor& t = tensors_[output_];
  for (int64_t r = 0; r < (whole_output_ ? t.rows : 1); ++r, out += t.width) {
    const char* row = worker.arena + t.offset + r * t.stride * (t.codec ? 1 : 4);
    if (!t.codec) {
      std::memcpy(out, row, t.width * sizeof(float));
      continue;
    }
    const Codec& q = *t.codec;
    for (int64_t c = 0; c < t.width; ++c) {
      const uint8_t code = static_cast<uint8_t>(row[c]);
      const float x = q.table ? q.table[code] : static_cast<float>(code) - (q.zero ? q.zero[c] : q.zero_token[r]);
      out[c] = (x * q.step[c]) * q.step_token[r];
    }
  }
}

// Workers 0 to threads - 1; `own_arenas`: each works on images of its own.
void Engine::make_workers(const Check& need, int threads, bool own_arenas) {
  // A thread of the parent was in the middle of a run when this process was forked: what it used is left where it is.
  if (mutex_.take_interrupted()) new (&workers_) std::vector<std::unique_ptr<Worker>>, last_worker_ = nullptr;
  const int64_t memory = machine_memory();
  need.memory(!own_arenas || arena_bytes_ <= memory / threads, threads, " threads need ", arena_bytes_,
       " bytes each for the tensors of an image, more than the ", memory, " bytes of memory here");
  const auto allocate = [&](int64_t bytes) {
    void* memory = std::aligned_alloc(64, static_cast<size_t>(padded(bytes + 1024, 64)));
    need.memory(memory != nullptr, "no memory for ", bytes, " bytes of an image's tensors");
    std::memset(memory, 0, static_cast<size_t>(bytes + 1024));
    return memory;
  };
  while (static_cast<int>(workers_.size()) < threads) workers_.push_back(std::make_unique<Worker>());
  for (int i = 0; i < threads; ++i) {
    Worker& w = *workers_[i];
    w.prepared = -1;
    w.phase_seconds.resize(phases_.size());
    if (!w.scratch) w.scratch = static_cast<float*>(allocate(scratch_floats_ * 4));
    if (!w.arena && (i == 0 || own_arenas)) w.arena = static_cast<char*>(allocate(arena_bytes_));
  }
}

void Engine::run(const float* images, int64_t batch, float* out, int threads) {
  std::lock_guard<ForkMutex> lock(mutex_);
  const Check need("the engine");
  need(finished_, "the program is not finished");
  need_threads(need, threads);
  if (batch <= 0) return;
  cut_scans(threads);
  // Each thread takes whole images as long as there is one for every thread; all work together on the rest.
  const int64_t most = batch < kMaxTasks ? batch : kMaxTasks;
  Run run{*this, images, batch, most / threads * threads, out, threads};
  make_workers(need, threads, run.whole > 0);
  run_tasks(threads, threads, [](void* context, int64_t) {
    Run& r = *static_cast<Run*>(context);
    r.participate();
  }, &run);
}

void Engine::read_tensor(int index, void* out, int64_t bytes) {
  std::lock_guard<ForkMutex> lock(mutex_);
  const Check need("the engine");
  const Tensor& t = tensor(need, index);
  const int64_t element = t.codec ? 1 : 4;
  need(last_worker_ != nullptr, "no image was run");
  need(bytes == t.rows * t.width * element, "tensor ", index, " has ", t.rows * t.width * element, " bytes, not ", bytes);
  for (int64_t r = 0; r < t.rows; ++r)
    std::memcpy(static_cast<char*>(out) + r * t.width * element, last_worker_->arena + t.offset + r * t.stride * element,
                static_cast<size_t>(t.width * element));
}

void Engine::enable_profile(bool on) {
  std::lock_guard<ForkMutex> lock(mutex_);
  profile_ = on;
  for (auto& w : workers_)
    for (int k = 0; k < kKinds; ++k) w->source_seconds[k] = w->body_seconds[k] = 0;
  for (auto& w : workers_) std::fill(w->phase_seconds.begin(), w->phase_seconds.end(), 0.0);
}

std::vector<Engine::PhaseTime> Engine::phase_times(int threads) {
  std::lock_guard<ForkMutex> lock(mutex_);
  const Check need("the engine");
  need(finished_, "the program is not finished");
  need_threads(need, threads);
  cut_scans(threads);
  std::vector<PhaseTime> found;
  for (size_t p = 0; p < phases_.size(); ++p) {
    double seconds = 0;
    for (const auto& w : workers_)
      if (p < w->phase_seconds.size()) seconds += w->phase_seconds[p];
    found.push_back({kKindNames[operations_[phases_[p].first].kind], phases_[p].tasks, seconds});
  }
  return found;
}

std::map<std::string, double> Engine::profile() const {
  std::map<std::string, double> seconds;
  for (const auto& w : workers_)
    for (int k = 0; k < kKinds; ++k) {
      if (w->source_seconds[k] > 0) seconds[kKindNames[k]] += w->source_seconds[k];
      if (w->body_seconds[k] > 0) seconds[std::string(kKindNames[k]) + " body"] += w->body_seconds[k];
    }
  return seconds;
}

void Engine::run_single(const std::vector<Input>& inputs, int64_t batch, float* out, int threads) {
  std::lock_guard<ForkMutex> lock(mutex_);
  const Check need("the engine");
  need(finished_ && operations_.size() == 1, "a program of ", operations_.size(), " operations is not a single one");
  need_threads(need, threads);
  for (const Input& input : inputs) tensor(need, input.tensor);
  const Operation& op = operations_[0];
  const Tensor& result = tensors_[output_];
  need(!result.codec && result.rows == op.rows, "the result has codes, or ", result.rows, " rows, not ", op.rows);
  auto image = [&](int64_t b) {
    const FloatMode mode;
    std::vector<std::max_align_t> room((arena_bytes_ + scratch_floats_ * 4 + 256) / sizeof(std::max_align_t) + 1);
    char* arena = reinterpret_cast<char*>(padded(reinterpret_cast<int64_t>(room.data()), 64));
    Frame f = {tensors_.data(), arena, nullptr, channels_,
               reinterpret_cast<float*>(arena + padded(arena_bytes_, 64))};
    for (const Input& input : inputs) {
      const Tensor& t = tensors_[input.tensor];
      const int64_t element = t.codec ? 1 : 4, row = t.width * element;
      const char* from = static_cast<const char*>(input.data) + b * t.rows * row;
      for (int64_t r = 0; r < t.rows; ++r)
        std::memcpy(arena + t.offset + r * t.stride * element, from + r * row, row);
    }
    if (in_blocks(op.kind)) {
      kernels_->prepare_scan(op, f);
      for (int64_t block = 0; block < scan_blocks(op); ++block) kernels_->scan(op, f, block);
    }
    for (int64_t row = 0; row < op.rows; row += kTileRows) {
      const int64_t count = op.rows - row < kTileRows ? op.rows - row : kTileRows;
      kernels_->body(op, f, kernels_->source(op, f, row, count), row, count);
    }
    for (int64_t r = 0; r < op.rows; ++r)
      std::memcpy(out + (b * op.rows + r) * result.width, f.row<float>(result, r), result.width * sizeof(float));
  };
  parallel_for(batch, threads, image);
}

}  // namespace visq::engine
