#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <thread>

#include "../threads.h"
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace visq::engine {
namespace {

constexpr int64_t kMaxSize = 1 << 20;
constexpr int64_t kMaxBytes = int64_t{1} << 40;
constexpr int64_t kMaxTasks = 4096;
constexpr int64_t kNearFloats = 4096;  // of a body's registers, that stay in the first cache
constexpr int kKinds = 14;
const char* const kKindNames[kKinds] = {
    "patches",     "concat",            "rows",           "transpose",            "mean", "linear",    "float linear",
    "convolution", "float convolution", "convolution 2d", "float convolution 2d", "scan", "fused scan", "float scan"};

const char* const kOpNames[] = {
    "view",         "load",       "load_row", "silu",       "softplus", "gelu",        "neg",
    "add",          "mul",        "add_constant", "mul_constant", "mul_scalar", "rms_norm", "layer_norm",
    "round",        "round_table", "rotate",  "store",      "store_floats", "store_table", "store_rounded"};

void need(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Windows on a side of a map; each meets the map.
int64_t windows(int64_t side, int64_t kernel, int64_t stride, int64_t padding) {
  need(padding >= 0 && padding < kernel && kernel <= side + 2 * padding, "windows that lie outside");
  return (side + 2 * padding - kernel) / stride + 1;
}

int64_t square_side(int64_t rows) {
  int64_t side = 1;
  while (side * side < rows) ++side;
  need(side * side == rows, "a map is not square");
  return side;
}

void need_size(int64_t n) { need(n >= 1 && n <= kMaxSize, "a dimension is out of range"); }

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// The engine's float arithmetic rounds to nearest and keeps subnormals, whatever the caller set on its thread.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

bool is_scan(Operation::Kind kind) {
  return kind == Operation::kFixedScan || kind == Operation::kFusedScan || kind == Operation::kFloatScan;
}
bool is_scan(const Operation& op) { return is_scan(op.kind); }

// A task of a scan: as many blocks as fill a line of codes, so that no two threads write to one.
constexpr int64_t kTaskBlocks = 64 / kChannels;
int64_t scan_blocks(const Operation& op) { return padded(op.width) / kChannels; }
int64_t scan_tasks(const Operation& op, int64_t each) { return (scan_blocks(op) + each - 1) / each; }

// About what a row costs, to cut work into tasks that are neither too many nor too long to wait for.
constexpr double kTaskNanoseconds = 3000;
double row_nanoseconds(const Operation& op) {
  double width = static_cast<double>(op.width), products = 0;
  if (op.kind == Operation::kIntLinear) products = width * static_cast<double>(op.int_linear.K) / 200;
  if (op.kind == Operation::kIntConv2d || op.kind == Operation::kFloatConv2d)
    products = width * static_cast<double>(op.conv2d.K * op.conv2d.K) / 16;
  if (op.kind == Operation::kFloatLinear) products = width * static_cast<double>(op.float_linear.K) / 50;
  return products + (width + 16) * (1 + static_cast<double>(op.step_count)) / 16;
}

// Off a processor, for a thread that was woken on it while the leader keeps it busy: where other processes run too, the
// kernel may leave both there for the length of a run.
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

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// What one thread works with: its arena (for whole images), its scratch.
struct Engine::Worker {
  char* arena = nullptr;
  float* scratch = nullptr;
  int64_t prepared = -1;  // the scan, counted over all images, that this thread has prepared
  double source_seconds[kKinds] = {}, body_seconds[kKinds] = {};
  ~Worker() {
    std::free(arena);
    std::free(scratch);
  }
};

// Work is published one phase after the other in one word, (generation << 32 | first task left << 16 | end of those
// left). Whoever is free takes the next task, the leader and every other helper from the front, the rest from the back:
// a thread mostly gets the rows, or the channels, that it had in the phase before, which its own cache holds. The leader
// goes on when all tasks of a phase are done. A helper that comes late, or never, costs time but is not waited for: only
// what it has taken is.
struct Engine::Run {
  Engine& engine;
  const float* images;
  int64_t batch, whole;  // the first `whole` images are taken by single threads
  float* out;
  int threads;
  std::atomic<int> joined{0}, leader_processor{-1};
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<int64_t> done{0};

  static constexpr uint64_t kOver = ~uint64_t{0}, kWholeImages = 1;  // generations; those after are phases

  // One task of the phase that is open; false when there is none left.
  bool take(int index) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    if (seen == kOver) return false;
    const uint64_t first = seen >> 16 & 0xffff, end = seen & 0xffff;
    if (first >= end) return false;
    const bool front = index % 2 == 0 || seen >> 32 == kWholeImages;  // whose last one stays in its arena
    if (!ticket.compare_exchange_weak(seen, front ? seen + (1 << 16) : seen - 1, std::memory_order_acq_rel)) return true;
    work(index, static_cast<int64_t>(seen >> 32), static_cast<int64_t>(front ? first : end - 1));
    done.fetch_add(1, std::memory_order_release);
    return true;
  }

  // Phases are those of the images that follow the whole ones, one image after the other.
  void work(int index, int64_t generation, int64_t task) {
    Engine& e = engine;
    Worker& worker = *e.workers_[index];
    const int64_t image_floats = e.image_floats(), width = e.output_width();
    if (generation == kWholeImages) {
      e.run_image(worker, task, images + task * image_floats, out + task * width);
      if (task == batch - 1) e.last_ = &worker;
      return;
    }
    const int64_t phases = static_cast<int64_t>(e.phases_.size());
    const int64_t image = whole + (generation - 2) / phases, phase = (generation - 2) % phases;
    // All threads work in the arena of the leader, which is the first worker.
    e.run_phase(worker, e.workers_[0]->arena, e.phases_[phase], image, task, images + image * image_floats);
  }

  void open(int index, int64_t generation, int64_t tasks) {
    done.store(0, std::memory_order_relaxed);
    ticket.store(static_cast<uint64_t>(generation) << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
    while (take(index)) {}
    for (int spins = 0; done.load(std::memory_order_acquire) < tasks; ++spins) spins < 4000 ? relax() : yield();
  }

  static void yield() { std::this_thread::yield(); }

  void lead(int index) {
    Engine& e = engine;
    const int64_t phases = static_cast<int64_t>(e.phases_.size());
    leader_processor.store(processor());
    if (whole) open(index, kWholeImages, whole);
    for (int64_t image = whole; image < batch; ++image) {
      for (int64_t p = 0; p < phases; ++p) open(index, 2 + (image - whole) * phases + p, e.phases_[p].tasks);
      e.write_output(*e.workers_[0], out + image * e.output_width());
      e.last_ = e.workers_[0].get();
    }
    ticket.store(kOver, std::memory_order_release);
  }

  void help(int index) {
    leave(leader_processor.load());
    for (int spins = 0; ticket.load(std::memory_order_acquire) != kOver; ++spins) {
      if (take(index)) spins = 0;
      spins < 4000 ? relax() : yield();
    }
  }
};

Engine::Engine(const std::string& isa, int64_t channels, int64_t size)
    : kernels_(kernels_named(isa.c_str())), channels_(channels), size_(size) {
  need(kernels_ != nullptr, "this machine or build lacks the instruction set");
  need_size(channels);
  need_size(size);
}

Engine::~Engine() = default;

// --- memory and checks

template <class T>
T* Engine::keep(int64_t count) {
  const size_t bytes = static_cast<size_t>(padded(count * static_cast<int64_t>(sizeof(T)) + 64, 64));
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  memory_.emplace_back(memory, std::free);
  std::memset(memory, 0, bytes);
  return static_cast<T*>(memory);
}

template <class T>
const T* Engine::keep(Array<T> from, int64_t count, T fill) {
  T* to = keep<T>(padded(count, 64));
  for (int64_t i = 0; i < padded(count, 64); ++i) to[i] = i < from.size ? from.at(i) : fill;
  return to;
}

const Tensor& Engine::tensor(int index) const {
  need(index >= 0 && index < static_cast<int>(tensors_.size()), "no such tensor");
  return tensors_[index];
}

void Engine::check_arena(int64_t offset, int64_t bytes) {
  need(offset >= 0 && offset % 64 == 0 && bytes >= 0 && offset + bytes <= kMaxBytes, "an offset is out of range");
  if (offset + bytes > needed_arena_) needed_arena_ = offset + bytes;
}

// In the order of Lanes::round_to_bytes, which packs two vectors into 16 bits by quarters of 16 bytes: four numbers of
// the first vector, four of the second, and so on.
const int16_t* Engine::pack_zeros(Array<float> zero) {
  const int64_t lanes = kernels_->lanes, pair = 2 * lanes, quarter = lanes < 4 ? lanes : 4;
  int16_t* packed = keep<int16_t>(padded(zero.size, 64));
  for (int64_t i = 0; i < zero.size / pair * pair; ++i) {
    const int64_t at = i % pair, vector = at / quarter % 2, element = at / (2 * quarter) * quarter + at % quarter;
    packed[i] = static_cast<int16_t>(zero.at(i - at + vector * lanes + element));
  }
  return packed;
}

int Engine::add_quantizer(int64_t width, int64_t rows, Array<float> inverse, Array<float> step,
                          Array<float> inverse_token, Array<float> step_token, Array<float> zero,
                          Array<float> zero_token, float low, float high, Array<float> table, Array<float> thresholds) {
  need_size(width);
  need_size(rows);
  need(inverse.size == width && step.size == width, "a quantizer's channels do not fit");
  need(inverse_token.size == rows && step_token.size == rows && zero_token.size == rows,
       "a quantizer's rows do not fit");
  need(zero.size == 0 || zero.size == width, "a quantizer's zero points do not fit");
  need(low >= 0 && high <= 255 && low <= high, "codes are not bytes");
  need(table.size <= 256 && thresholds.size == (table.size ? table.size - 1 : 0), "a table does not fit");
  auto q = std::make_unique<Quantizer>();
  q->width = width, q->rows = rows;
  q->inverse = keep(inverse, width), q->step = keep(step, width);
  q->inverse_token = keep(inverse_token, rows), q->step_token = keep(step_token, rows);
  q->by_channel = q->by_token = false;
  for (int64_t c = 0; c < width; ++c) q->by_channel = q->by_channel || inverse.at(c) != 1 || step.at(c) != 1;
  for (int64_t r = 0; r < rows; ++r) q->by_token = q->by_token || inverse_token.at(r) != 1 || step_token.at(r) != 1;
  // Codes are made in 16 bits.
  for (const Array<float>& zeros : {zero, zero_token})
    for (int64_t i = 0; i < zeros.size; ++i)
      need(zeros.at(i) >= -16384 && zeros.at(i) <= 16384, "a zero point is out of range");
  q->zero = zero.size ? keep(zero, width) : nullptr;
  q->packed_zero = zero.size ? pack_zeros(zero) : nullptr;
  q->zero_token = keep(zero_token, rows);
  q->low = low, q->high = high;
  if (table.size) {
    // 256 entries: whatever a byte of padding holds, it picks one of them.
    q->table = keep(table, 256), q->thresholds = keep(thresholds, 256);
    float* positions = keep<float>(256);
    for (int i = 0; i < 256; ++i) positions[i] = static_cast<float>(i);
    q->positions = positions, q->thresholds_count = static_cast<int>(thresholds.size);
  }
  quantizers_.push_back(std::move(q));
  return static_cast<int>(quantizers_.size()) - 1;
}

int Engine::add_tensor(int64_t rows, int64_t width, int64_t offset, int quantizer) {
  need_size(rows);
  need_size(width);
  need(quantizer >= -1 && quantizer < static_cast<int>(quantizers_.size()), "no such quantizer");
  Tensor t = {rows, width, 0, offset, quantizer, quantizer < 0 ? nullptr : quantizers_[quantizer].get()};
  t.stride = t.codes ? padded(width, 64) : padded(width);
  need(!t.codes || (t.codes->width == width && t.codes->rows == rows), "a tensor does not fit its quantizer");
  check_arena(offset, rows * t.stride * (t.codes ? 1 : 4));
  tensors_.push_back(t);
  return static_cast<int>(tensors_.size()) - 1;
}

// --- sources

Operation& Engine::start(Operation::Kind kind, int64_t rows, int64_t width) {
  need(!finished_, "the program is finished");
  need_size(rows);
  if (kind != Operation::kRows) need_size(width);
  building_.push_back(std::make_unique<Building>());
  Operation& op = building_.back()->op;
  op = Operation{};
  op.kind = kind, op.rows = rows, op.width = width, op.body_rows = 1;
  widths_.assign(kRegisters, -1);
  slices_.clear();
  for (int reg = 0; reg < kRegisters; ++reg) slices_.push_back({reg, 0});
  if (kind != Operation::kRows) widths_[0] = width;
  op.tile_floats = is_scan(kind) || kind == Operation::kRows ? 0 : kernels_->rows * padded(width);
  return op;
}

Operation& Engine::current() {
  need(!building_.empty() && !finished_, "no operation was started");
  return building_.back()->op;
}

void Engine::patches(int64_t rows, int64_t width, int input, int64_t patch, int64_t stride, int64_t padding) {
  need_size(patch);
  need_size(stride);
  const int64_t side = input < 0 ? size_ : square_side(tensor(input).rows);
  const int64_t channels = input < 0 ? channels_ : tensor(input).width, on_a_side = windows(side, patch, stride, padding);
  need(rows == on_a_side * on_a_side && width == channels * patch * patch, "patches have another shape");
  Operation& op = start(Operation::kPatches, rows, width);
  op.inputs[0] = input;
  op.patch = patch, op.patch_stride = stride, op.padding = padding, op.side = side;
  op.extra_floats = input < 0 ? 0 : padded(channels);
}

void Engine::transpose(int input, int64_t height, int64_t width) {
  const Tensor& x = tensor(input);
  need_size(height);
  need_size(width);
  need(height * width == x.rows, "a map has another number of rows");
  Operation& op = start(Operation::kTranspose, x.rows, x.width);
  op.inputs[0] = input, op.map_height = height, op.map_width = width;
}

void Engine::mean(int input) {
  const int64_t width = tensor(input).width;
  Operation& op = start(Operation::kMean, 1, width);
  op.inputs[0] = input, op.extra_floats = padded(width);
}

void Engine::concat(int64_t rows, int64_t width) { start(Operation::kConcat, rows, width); }

void Engine::concat_part(int index, int64_t first, int64_t count, Array<float> constant) {
  const Operation& op = current();
  need(op.kind == Operation::kConcat && count >= 1 && first >= 0, "a part does not fit");
  Part part = {index, first, count, nullptr};
  if (index < 0) {
    need(count == 1 && constant.size == op.width, "a constant part does not fit");
    part.constant = keep(constant, op.width);
  } else {
    const Tensor& t = tensor(index);
    need(t.width == op.width && count <= t.rows && first <= t.rows - count, "a part does not fit");
  }
  building_.back()->parts.push_back(part);
}

void Engine::rows(int64_t rows) { start(Operation::kRows, rows, 0); }

// [panel][k][block][lane], zero where N is padded; weight(n, k) = weight[n * stride_n + k * stride_k].
const float* Engine::pack_floats(const float* weight, int64_t N, int64_t K, int64_t stride_n, int64_t stride_k) {
  const int64_t lanes = kernels_->lanes, blocks = padded(N) / lanes, panel = kernels_->panel;
  float* packed = keep<float>(padded(N) * K);
  float* to = packed;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t width = blocks - b < panel ? blocks - b : panel;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = b * lanes; n < (b + width) * lanes; ++n)
        *to++ = n < N ? weight[n * stride_n + k * stride_k] : 0.0f;
  }
  return packed;
}

IntLinear& Engine::start_int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                                    Array<float> token, Array<float> bias, bool wide) {
  const Tensor& x = tensor(input);
  const int64_t N = width, K = x.width;
  need_size(N);
  need(x.codes && x.rows == rows && weight.size == N * K, "a linear layer does not fit its input");
  need(scale.size == N && bias.size == N && token.size == rows, "a linear layer's scales do not fit");
  Operation& op = start(Operation::kIntLinear, rows, width);
  op.inputs[0] = input;
  IntLinear& p = op.int_linear;
  p.K = K, p.N = padded(N), p.wide = wide;
  const int64_t lanes = kernels_->lanes, step = wide ? 2 : kernels_->step, panel = kernels_->panel;
  p.tiled = !wide && kernels_->tiles(rows, K);
  const int64_t steps = padded(K, p.tiled ? 64 : step) / step, blocks = p.N / lanes;
  int8_t* bytes = step == 4 ? keep<int8_t>(p.N * steps * step) : nullptr;
  int16_t* shorts = step == 4 ? nullptr : keep<int16_t>(p.N * steps * step);
  p.packed = bytes ? static_cast<const void*>(bytes) : shorts;
  int32_t* sums = keep<int32_t>(p.N);
  int64_t to = 0;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t in_panel = blocks - b < panel ? blocks - b : panel;
    for (int64_t s = 0; s < steps; ++s)
      for (int64_t n = b * lanes; n < (b + in_panel) * lanes; ++n)
        for (int64_t k = s * step; k < (s + 1) * step; ++k, ++to) {
          const int8_t w = n < N && k < K ? weight.at(n * K + k) : static_cast<int8_t>(0);
          bytes ? static_cast<void>(bytes[to] = w) : static_cast<void>(shorts[to] = w);
          sums[n] += w;
        }
  }
  p.row_sums = sums;
  p.scale = keep(scale, p.N), p.bias = keep(bias, p.N), p.token = keep(token, rows);
  if (step == 2) op.extra_floats = kernels_->rows * x.stride / 2;
  return p;
}

void Engine::int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                        Array<float> token, Array<int32_t> zero, Array<float> bias) {
  need(zero.size == rows, "a linear layer's zero points do not fit");
  // |byte - zero| <= 2^16 below, so that sums stay inside 32 bits.
  int64_t largest = 255;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t z = zero.at(i), reach = z < 0 ? 255 - z : z > 255 ? z : 255;
    if (reach > largest) largest = reach;
  }
  need(tensor(input).width * largest * 128 < (int64_t{1} << 31), "a linear layer's sums may leave 32 bits");
  start_int_linear(rows, width, input, weight, scale, token, bias, false).zero = keep(zero, rows);
}

void Engine::wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                         Array<float> token, Array<float> bias, Array<int16_t> values, Array<int16_t> offset,
                         Array<int16_t> factor) {
  const int64_t K = tensor(input).width;
  need((values.size == 0 || values.size == 256) && offset.size == K && factor.size == K,
       "a linear layer's values do not fit");
  int64_t least = values.size ? values.at(0) : 0, most = values.size ? values.at(0) : 255, sum = 0;
  for (int64_t i = 0; i < values.size; ++i) {
    if (values.at(i) < least) least = values.at(i);
    if (values.at(i) > most) most = values.at(i);
  }
  for (int64_t k = 0; k < K; ++k) {
    const int64_t low = (least - offset.at(k)) * factor.at(k), high = (most - offset.at(k)) * factor.at(k);
    need(factor.at(k) >= 0 && low >= -32768 && high <= 32767, "a linear layer's values leave 16 bits");
    sum += 128 * (-low > high ? -low : high);
  }
  need(sum < (int64_t{1} << 31), "a linear layer's sums may leave 32 bits");
  IntLinear& p = start_int_linear(rows, width, input, weight, scale, token, bias, true);
  p.values = values.size ? keep(values, 256) : nullptr;
  p.offset = keep(offset, K), p.factor = keep(factor, K), p.zero = keep<int32_t>(rows);
}

void Engine::float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias) {
  const Tensor& x = tensor(input);
  need_size(width);
  need(x.rows == rows && weight.size == width * x.width && bias.size == width, "a linear layer does not fit its input");
  Operation& op = start(Operation::kFloatLinear, rows, width);
  op.inputs[0] = input;
  op.float_linear = {x.width, padded(width), pack_floats(weight.data, width, x.width, x.width, 1),
                     keep(bias, padded(width))};
  if (x.codes) op.extra_floats = kernels_->rows * padded(x.width);
}

void Engine::int_conv(int input, Array<int8_t> weight, Array<float> scale, Array<int32_t> zero, Array<float> bias,
                      bool reverse) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, K = weight.size / C, stride = padded(C);
  need(x.codes && K >= 1 && K <= 64 && weight.size == K * C, "a convolution does not fit its input");
  need(scale.size == C && zero.size == C && bias.size == C, "a convolution's scales do not fit");
  Operation& op = start(Operation::kIntConv, x.rows, C);
  op.inputs[0] = input;
  int32_t *taps = keep<int32_t>(K * stride), *correction = keep<int32_t>((K + 1) * stride);
  for (int64_t c = 0; c < C; ++c) {
    need(zero.at(c) >= -65536 && zero.at(c) <= 65536, "a zero point is out of range");
    int32_t sum = 0;
    for (int64_t k = K - 1; k >= 0; --k) {
      sum += weight.at(c * K + k);
      // The tap as the low half of a lane, for a 16-bit multiply-add with a byte: the high half meets zero.
      taps[k * stride + c] = weight.at(c * K + k);
      correction[k * stride + c] = zero.at(c) * sum;
    }
  }
  int8_t* four = K <= 4 && kernels_->step == 4 ? keep<int8_t>(4 * padded(C, 64)) : nullptr;
  for (int64_t c = 0; four && c < C; ++c)
    for (int64_t k = 0; k < K; ++k) four[c * 4 + 4 - K + k] = weight.at(c * K + k);
  op.conv = {K, reverse, keep(bias, C), nullptr, taps, four, correction, keep(scale, C)};
}

void Engine::float_conv(int input, Array<float> weight, Array<float> bias, bool reverse) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, K = weight.size / C, stride = padded(C);
  need(K >= 1 && K <= 64 && weight.size == K * C && bias.size == C, "a convolution does not fit its input");
  Operation& op = start(Operation::kFloatConv, x.rows, C);
  op.inputs[0] = input;
  float* taps = keep<float>(K * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < K; ++k) taps[k * stride + c] = weight.at(c * K + k);
  op.conv = {K, reverse, keep(bias, C), taps, nullptr, nullptr, nullptr, nullptr};
  if (x.codes) op.extra_floats = (kernels_->rows + K) * stride;
}

Conv2d& Engine::conv2d(Operation::Kind kind, int input, int64_t kernel, int64_t padding) {
  const Tensor& x = tensor(input);
  need(kernel >= 1 && kernel <= kMaxKernel, "a kernel is out of range");
  const int64_t side = square_side(x.rows), out_side = windows(side, kernel, 1, padding);
  Operation& op = start(kind, out_side * out_side, x.width);
  op.inputs[0] = input;
  op.conv2d = {kernel, padding, side, out_side, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  return op.conv2d;
}

void Engine::int_conv2d(int input, int64_t kernel, int64_t padding, Array<int8_t> weight, Array<float> scale,
                        Array<int32_t> zero, Array<float> bias) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = conv2d(Operation::kIntConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need(x.codes && weight.size == taps * C, "a convolution does not fit its input");
  need(scale.size == C && zero.size == C && bias.size == C, "a convolution's scales do not fit");
  // 15 * 15 * (65,536 + 255) * 128 < 2^31.
  for (int64_t c = 0; c < C; ++c) need(zero.at(c) >= -65536 && zero.at(c) <= 65536, "a zero point is out of range");
  // A tap as the low half of a lane, for a 16-bit multiply-add with a byte: the high half meets zero.
  int32_t *packed = keep<int32_t>(taps * stride), *sums = keep<int32_t>(stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) {
      packed[k * stride + c] = weight.at(c * taps + k);
      sums[c] += weight.at(c * taps + k);
    }
  p.taps = packed, p.tap_sums = sums;
  p.zero = keep(zero, C), p.scale = keep(scale, C), p.bias = keep(bias, C);
}

void Engine::float_conv2d(int input, int64_t kernel, int64_t padding, Array<float> weight, Array<float> bias) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = conv2d(Operation::kFloatConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need(weight.size == taps * C && bias.size == C, "a convolution does not fit its input");
  float* packed = keep<float>(taps * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) packed[k * stride + c] = weight.at(c * taps + k);
  p.weight = packed, p.bias = keep(bias, C);
  current().extra_floats = stride;
}

void Engine::scan_shape(Operation& op, int u, int delta, int B, int C, int y) {
  const int64_t L = op.rows, D = op.width;
  for (const int index : {u, delta})
    need(tensor(index).rows == L && tensor(index).width == D, "a scan's shapes differ");
  for (const int index : {B, C})
    need(tensor(index).rows == L && tensor(index).width == tensor(B).width, "a scan's shapes differ");
  op.inputs[0] = u, op.inputs[1] = delta, op.inputs[2] = B, op.inputs[3] = C;
  const Tensor& out = tensor(y);
  need(out.rows == L && out.width == D && !(out.codes && out.codes->table), "a scan's y does not fit");
  op.y = y;
  if (out.codes) widths_[0] = -1;
}

// What the scans in fixed point share. What C is multiplied with is in units of 2^-point of a code, at most `largest`.
void Engine::scan_steps(ScanSteps& p, Operation& op, const ScanArrays& s, bool reverse, int point, int64_t largest,
                        int most_lift) {
  const int64_t L = op.rows, D = op.width, N = tensor(op.inputs[2]).width;
  const Quantizer* codes = tensor(op.inputs[3]).codes;
  need(codes && !codes->zero && !codes->table, "a scan's C is not codes");
  need(s.a.size == D * N && s.delta_scale.size == D && s.input_channel.size == D && s.y_channel.size == D,
       "a scan's channels do not fit");
  need(s.beta_scale.size == L && s.input_step.size == L && s.lift.size == L && s.y_step.size == L,
       "a scan's steps do not fit");
  // What keeps every intermediate value in its lanes.
  need(s.shift >= 16 && s.shift <= 31, "a scan's shift is out of range");
  int64_t largest_C = 255;
  for (int64_t t = 0; t < L; ++t) {
    need(s.lift.at(t) >= 0 && s.lift.at(t) <= most_lift, "a scan's steps are out of range");
    const float zero = codes->zero_token[t];
    need(zero >= -32000 && zero <= 32000, "a zero point is out of range");
    const int64_t reach = static_cast<int64_t>(std::fabs(zero)) + 255;
    if (reach > largest_C) largest_C = reach;
  }
  need(padded(N, 2) * largest * largest_C < (int64_t{1} << 31), "a scan's sums may leave 32 bits");

  const int64_t lanes = kernels_->lanes;
  p.L = L, p.C = padded(D), p.N = padded(N, 2), p.reverse = reverse, p.shift = s.shift;
  uint16_t* packed = keep<uint16_t>(p.C * p.N);
  for (int64_t c = 0; c < D; ++c)
    for (int64_t n = 0; n < N; ++n) {
      const int32_t value = s.a.at(c * N + n);
      need(value >= 0 && value <= 65535, "a scan's A is out of range");
      packed[c / lanes * lanes * p.N + (n / 2 * lanes + c % lanes) * 2 + n % 2] = static_cast<uint16_t>(value);
    }
  p.a = packed;
  p.delta_scale = keep(s.delta_scale, p.C), p.input_channel = keep(s.input_channel, p.C);
  // The product with a power of two is exact.
  float* unit = keep<float>(p.C);
  for (int64_t c = 0; c < D; ++c) unit[c] = std::ldexp(s.y_channel.at(c), -point);
  p.y_channel = unit;
  p.beta_scale = keep(s.beta_scale, L), p.input_step = keep(s.input_step, L), p.y_step = keep(s.y_step, L);
  p.lift = keep(s.lift, L);
  op.extra_floats = padded(L * p.N + kChannels, 32) + p.N * kChannels + 64;
}

// Descending coefficients: no difference is negative, and the power at most the first of them.
void Engine::need_power(Array<int32_t> power, int64_t at, int most) {
  for (int64_t i = at; i < at + 4; ++i)
    need(power.at(i) >= 0 && power.at(i) <= (i > at ? power.at(i - 1) : most), "a scan's power of two is out of range");
}

void Engine::fused_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                        Array<int32_t> power, int state_low, int state_high, int point) {
  const int64_t L = tensor(u).rows;
  Operation& op = start(Operation::kFusedScan, L, tensor(u).width);
  scan_shape(op, u, delta, B, C, y);
  FusedScan& p = op.fused_scan;
  const int end = 1 << (13 - point);
  need(point >= 6 && point <= 12 && state_low >= -end && state_high < end && state_low <= state_high,
       "a scan's state is out of range");
  scan_steps(p.steps, op, arrays, reverse, point, 32767, 2);
  need(power.size == 4 * L, "a scan's power of two does not fit");
  int16_t* pairs = keep<int16_t>(8 * L);
  for (int64_t t = 0; t < L; ++t) {
    need_power(power, 4 * t, 32767);
    for (int64_t i = 0; i < 8; ++i) pairs[8 * t + i] = static_cast<int16_t>(power.at(4 * t + i / 2));
  }
  p.power = pairs, p.state_low = state_low, p.state_high = state_high, p.point = point;
}

void Engine::fixed_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanNumbers& s,
                        const ScanArrays& arrays, Array<int32_t> abar_power, Array<int16_t> abar_lut,
                        Array<int16_t> bbar_lut, Array<float> drive_channel, Array<int32_t> decay) {
  const int64_t L = tensor(u).rows, D = tensor(u).width;
  Operation& op = start(Operation::kFixedScan, L, D);
  scan_shape(op, u, delta, B, C, y);
  need(drive_channel.size == D && decay.size == L && abar_power.size == 4, "a scan's channels or steps do not fit");
  need(abar_lut.size == 0 || abar_lut.size == 32768, "a scan's table does not fit");
  need(bbar_lut.size == 0 || bbar_lut.size == 65536, "a scan's table does not fit");
  need(s.point >= 1 && s.point <= 10 && s.state_low >= -(2048 >> s.point) && s.state_high < 2048 >> s.point &&
           s.state_low <= s.state_high,
       "a scan's state is out of range");
  need(s.abar_bits >= 1 && s.abar_bits <= 8 && s.abar_fraction >= 0 && s.abar_fraction <= 15 && s.bbar_bits >= 2 &&
           s.bbar_bits <= 8,
       "a scan's bits are out of range");
  FixedScan& p = op.fixed_scan;
  scan_steps(p.steps, op, arrays, reverse, s.point, 2048, 3);
  const int half = s.abar_fraction ? 1 << (s.abar_fraction - 1) : 0, bbar_end = 1 << (s.bbar_bits - 1);
  int64_t largest_abar = 0;
  if (!abar_lut.size) {
    need(half && s.abar_high >= 0 && s.abar_high < 1 << s.abar_bits, "a scan's Abar is out of range");
    largest_abar = int64_t{s.abar_high} << (16 - s.abar_bits);
  }
  if (!bbar_lut.size)
    need(s.bbar_low >= -bbar_end && s.bbar_high < bbar_end && s.bbar_low <= s.bbar_high,
         "a scan's Bbar is out of range");
  for (int64_t i = 0; i < abar_lut.size; ++i)
    largest_abar = std::max<int64_t>(largest_abar, static_cast<uint16_t>(abar_lut.at(i)));
  need_power(abar_power, 0, 65535 - half);
  uint16_t* kept = keep<uint16_t>(L);
  for (int64_t t = 0; t < L; ++t) {
    need(decay.at(t) >= 0 && decay.at(t) <= 65535 && (largest_abar * decay.at(t)) >> 16 <= 32767,
         "a scan's steps are out of range");
    kept[t] = static_cast<uint16_t>(decay.at(t));
  }
  p.decay = kept;
  for (int64_t i = 0; i < 4; ++i) p.abar_power[i] = abar_power.at(i);
  p.abar_fraction = s.abar_fraction, p.abar_high = s.abar_high, p.abar_bits = s.abar_bits;
  p.bbar_low = s.bbar_low, p.bbar_high = s.bbar_high, p.bbar_bits = s.bbar_bits;
  p.state_low = s.state_low, p.state_high = s.state_high, p.point = s.point;
  p.abar_table = scan_table(abar_lut, 0), p.bbar_table = scan_table(bbar_lut, -32768);
  for (int64_t i = 0; i < bbar_lut.size; ++i) need(bbar_lut.at(i) >= -32767, "a scan's table is out of range");
  p.aligned = !abar_lut.size && !bbar_lut.size && arrays.shift == 16 && s.abar_fraction == 16 - s.abar_bits &&
              (abar_power.at(0) + half) >> s.abar_fraction <= s.abar_high;
  p.drive_channel = keep(drive_channel, p.steps.C);
}

// `least`: the value of the first entry.
ScanTable Engine::scan_table(Array<int16_t> lut, int least) {
  if (!lut.size) return {nullptr, 0, nullptr, nullptr};
  std::vector<int16_t> thresholds, values = {lut.at(0)};
  for (int64_t i = 1; i < lut.size; ++i)
    if (lut.at(i) != lut.at(i - 1)) thresholds.push_back(static_cast<int16_t>(i + least)), values.push_back(lut.at(i));
  const int64_t steps = static_cast<int64_t>(thresholds.size());
  const int16_t* copy = keep(lut, lut.size);
  if (steps > kManySteps) return {copy, steps, nullptr, nullptr};
  // What is beyond the last threshold has the last value.
  const bool few = steps <= kFewSteps;
  const size_t entries = few ? kFewSteps + 1 : kManySteps + 1, groups = few ? entries : entries / 4;
  thresholds.resize(entries, 32767), values.resize(entries, lut.at(lut.size - 1));
  int16_t *packed_thresholds = keep<int16_t>(entries), *packed_values = keep<int16_t>(entries);
  for (size_t i = 0; i < entries; ++i) {
    const size_t to = few ? i : i % 4 * groups + i / 4;
    packed_thresholds[to] = thresholds[i], packed_values[to] = values[i];
  }
  return {copy, steps, packed_thresholds, packed_values};
}

Factor Engine::factor(const FactorArrays& arrays) {
  need(arrays.kind >= 0 && arrays.kind <= 2, "no such quantizer");
  const bool table = arrays.kind == Factor::kTable;
  need(!table || (arrays.table.size >= 1 && arrays.table.size <= 256), "a table does not fit");
  need(!table || arrays.thresholds.size == arrays.table.size - 1, "a table does not fit");
  return {static_cast<Factor::Kind>(arrays.kind), arrays.inverse, arrays.low, arrays.high, arrays.step,
          keep(table ? arrays.table : Array<float>{nullptr, 0}, 256),
          keep(table ? arrays.thresholds : Array<float>{nullptr, 0}, 256),
          table ? static_cast<int>(arrays.thresholds.size) : 0};
}

void Engine::float_scan(int u, int delta, int B, int C, int y, bool reverse, Array<float> A,
                        const FactorArrays& abar, const FactorArrays& bbar, Array<float> bbar_channel,
                        Array<float> bbar_inverse, Array<float> step, Array<float> scale, float low, float high,
                        bool read_quantized) {
  const int64_t L = tensor(u).rows, D = tensor(u).width, N = tensor(B).width;
  Operation& op = start(Operation::kFloatScan, L, D);
  scan_shape(op, u, delta, B, C, y);
  need(A.size == D * N && bbar_channel.size == D && bbar_inverse.size == D && (step.size == 0 || step.size == L) &&
           scale.size == (step.size ? D * N : 0),
       "a scan's parameters do not fit");
  float *rows_A = keep<float>(padded(D) * N), *rows_scale = keep<float>(padded(D) * N);
  for (int64_t i = 0; i < padded(D) * N; ++i) rows_scale[i] = 1.0f;
  for (int64_t c = 0; c < D; ++c)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t to = c / kChannels * kChannels * N + n * kChannels + c % kChannels;
      rows_A[to] = A.at(c * N + n);
      if (scale.size) rows_scale[to] = scale.at(c * N + n);
    }
  op.float_scan = {L, padded(D), N, reverse, rows_A, factor(abar), factor(bbar),
                   keep(bbar_channel, padded(D)), keep(bbar_inverse, padded(D)),
                   step.size ? keep(step, L) : nullptr, rows_scale, low, high, read_quantized};
  op.extra_floats = padded(N) * (kChannels + 2) + 64;
}

// --- row instructions

int64_t Engine::width_of(int reg) const {
  need(reg >= 0 && reg < kRegisters && widths_[reg] >= 0, "a register is read before it is written");
  return widths_[reg];
}

// `room`: floats of `slot` that the instruction writes.
Step& Engine::step(Step::Op kind, int dst, int src, int64_t slot, int64_t room) {
  Operation& op = current();
  Step s = {};
  s.op = kind, s.dst = dst, s.slot = slot, s.live = writes(s.op) && kind != Step::kView;
  if (src >= 0) s.width = width_of(src), s.a = slices_[src].reg, s.a_offset = slices_[src].offset;
  if (writes(s.op)) need_new(dst);
  need(slot >= 0 && slot <= kMaxBytes && room >= 0 && room <= 4 * kMaxSize, "a slot is out of range");
  if (slot + room > op.slot_floats) op.slot_floats = slot + room;
  building_.back()->steps.push_back(s);
  return building_.back()->steps.back();
}

void Engine::need_new(int reg) const {
  need(reg >= 0 && reg < kRegisters && widths_[reg] < 0, "a register is written twice");
}

void Engine::join() {
  need(building_.size() > 1 && !finished_, "no operation to join");
  const Operation &op = building_.back()->op, &before = building_[building_.size() - 2]->op;
  need(op.rows == before.rows && (!is_scan(op) || is_scan(before)),
       "an operation joins those of as many rows, and a scan joins scans");
  building_.back()->joins = true;
}

void Engine::load(int dst, int index, int64_t row, int64_t slot) {
  const Tensor& t = tensor(index);
  need(row < 0 ? t.rows == current().rows : row < t.rows, "no such row");
  const Step::Op op = !t.codes ? Step::kView : row < 0 && !t.codes->table ? Step::kLoad : Step::kLoadRow;
  Step& s = step(op, dst, -1, slot, t.codes ? padded(t.width) : 0);
  s.tensor = index, s.row = row < 0 ? -1 : row, s.width = t.width;
  widths_[dst] = t.width;
}

void Engine::slice(int dst, int src, int64_t offset, int64_t width) {
  current();
  need_size(width);
  need(offset >= 0 && offset + width <= width_of(src), "a slice beyond its register");
  need_new(dst);
  slices_[dst] = {slices_[src].reg, slices_[src].offset + offset};
  widths_[dst] = width;
}

void Engine::unary(const std::string& name, int dst, int src, int64_t slot) {
  static const std::map<std::string, Step::Op> ops = {
      {"silu", Step::kSilu}, {"softplus", Step::kSoftplus}, {"gelu", Step::kGelu}, {"neg", Step::kNeg}};
  need(ops.count(name) == 1, "no such instruction");
  step(ops.at(name), dst, src, slot, padded(width_of(src)));
  widths_[dst] = width_of(src);
}

void Engine::binary(const std::string& name, int dst, int a, int b, int64_t slot) {
  need(name == "add" || name == "mul", "no such instruction");
  need(width_of(a) == width_of(b), "registers of different widths");
  Step& s = step(name == "add" ? Step::kAdd : Step::kMul, dst, a, slot, padded(width_of(a)));
  s.b = slices_[b].reg, s.b_offset = slices_[b].offset;
  widths_[dst] = width_of(a);
}

void Engine::with_constant(const std::string& name, int dst, int src, Array<float> constant, int64_t slot) {
  need(name == "add_constant" || name == "mul_constant", "no such instruction");
  const int64_t width = width_of(src), rows = constant.size == width ? 1 : current().rows;
  need(constant.size == width * rows, "a constant does not fit");
  Step& s = step(name == "add_constant" ? Step::kAddConstant : Step::kMulConstant, dst, src, slot, padded(width));
  float* copy = keep<float>(rows * padded(width));
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(copy + r * padded(width), constant.data + r * width, width * sizeof(float));
  s.constant = copy, s.constant_stride = rows == 1 ? 0 : padded(width);
  widths_[dst] = width;
}

void Engine::mul_scalar(int dst, int src, float value, int64_t slot) {
  step(Step::kMulScalar, dst, src, slot, padded(width_of(src))).value = value;
  widths_[dst] = width_of(src);
}

void Engine::rms_norm(int dst, int src, Array<float> weight, float eps, int64_t slot) {
  const int64_t width = width_of(src);
  need(weight.size == width, "a norm's weight does not fit");
  Step& s = step(Step::kRmsNorm, dst, src, slot, padded(width));
  s.constant = keep(weight, width), s.eps = eps, s.value = static_cast<float>(1.0 / static_cast<double>(width));
  widths_[dst] = width;
}

void Engine::layer_norm(int dst, int src, Array<float> weight, Array<float> bias, float eps, int64_t slot) {
  const int64_t width = width_of(src);
  need(weight.size == width && bias.size == width, "a norm's weight does not fit");
  Step& s = step(Step::kLayerNorm, dst, src, slot, padded(width));
  s.constant = keep(weight, width), s.bias = keep(bias, width), s.eps = eps;
  widths_[dst] = width;
}

void Engine::round(int dst, int src, int quantizer, int64_t slot) {
  need(quantizer >= 0 && quantizer < static_cast<int>(quantizers_.size()), "no such quantizer");
  const Quantizer* codes = quantizers_[quantizer].get();
  need(codes->width == width_of(src) && codes->rows == current().rows, "a register does not fit its quantizer");
  step(codes->table ? Step::kRoundTable : Step::kRound, dst, src, slot, padded(width_of(src))).codes = codes;
  widths_[dst] = width_of(src);
}

void Engine::rotate(int dst, int src, Array<float> inverse_divisor, Array<float> matrix, int64_t slot) {
  const int64_t width = width_of(src);
  int64_t order = 1;
  while (order * order < matrix.size) ++order;
  const int64_t runs = width / order;
  need(inverse_divisor.size == width && matrix.size == order * order && width == runs * order && !(runs & (runs - 1)),
       "a rotation does not fit");
  const int64_t row = padded(width), extra = runs == 1 ? row : 2 * (row + kChannels) + runs * padded(order);
  Step& s = step(Step::kRotate, dst, src, slot, row + extra);
  s.constant = keep(inverse_divisor, width);
  // Row by matrix: output n sums over k the element [k][n].
  FloatLinear* linear = keep<FloatLinear>(1);
  *linear = {order, padded(order), pack_floats(matrix.data, order, order, 1, order), nullptr};
  s.linear = linear;
  if (runs == 1) current().body_rows = kTileRows;  // the matrix is read once for a tile
  widths_[dst] = width;
}

void Engine::store(int src, int index) {
  const Tensor& t = tensor(index);
  need(t.rows == current().rows && t.width == width_of(src), "a stored row has another shape");
  const Step::Op op = !t.codes ? Step::kStoreFloats : t.codes->table ? Step::kStoreTable : Step::kStore;
  step(op, 0, src, 0, 0).tensor = index;
}

// Cuts a body into what runs together: the first chain that fits, again and again.
void Engine::chain_steps(std::vector<Step>& steps, std::vector<Segment>& segments) const {
  // Floats that are read in place stand between no others.
  std::stable_partition(steps.begin(), steps.end(), [](const Step& s) { return s.op == Step::kView; });
  const auto fits = [&](size_t at, const ChainShape& chain) {
    if (at + static_cast<size_t>(chain.length) > steps.size()) return false;
    const auto comes_from = [&](int link, int reg, int64_t offset) {
      if (link >= 0) return steps[at + link].dst == reg && offset == 0 && steps[at + link].width == steps[at].width;
      for (int64_t i = 0; i < chain.length; ++i)
        if (writes(steps[at + i].op) && steps[at + i].dst == reg) return false;
      return true;
    };
    for (int64_t i = 0; i < chain.length; ++i) {
      const Step& s = steps[at + i];
      const LinkShape& link = chain.links[i];
      if (s.width != steps[at].width) return false;
      if (link.op == Step::kStoreRounded) {
        const Step& round = steps[at + link.a];
        if (s.op != Step::kStore || tensors_[s.tensor].codes != round.codes || s.a != round.a ||
            s.a_offset != round.a_offset)
          return false;
        continue;
      }
      if (s.op != link.op) return false;
      if (reads(s.op) && !comes_from(link.a, s.a, s.a_offset)) return false;
      if (is_binary(s.op) && !comes_from(link.b, s.b, s.b_offset)) return false;
    }
    return true;
  };
  for (size_t at = 0; at < steps.size();) {
    const ChainShape *chain = kernels_->chains, *end = chain + kernels_->chain_count;
    while (chain != end && !fits(at, *chain)) ++chain;
    const size_t count = chain == end ? 1 : static_cast<size_t>(chain->length);
    segments.push_back({&steps[at], static_cast<int64_t>(count), chain == end ? nullptr : chain->run});
    // Only what is read elsewhere is written.
    for (size_t i = at; i < at + count; ++i) {
      if (chain != end) steps[i].op = chain->links[i - at].op;
      if (!writes(steps[i].op) || steps[i].op == Step::kView) continue;
      steps[i].live = false;
      for (size_t j = 0; j < steps.size(); ++j) {
        const bool first = reads(steps[j].op) && steps[j].a == steps[i].dst;
        if ((j < at || j >= at + count) && (first || (is_binary(steps[j].op) && steps[j].b == steps[i].dst)))
          steps[i].live = true;
      }
    }
    at += count;
  }
}

void Engine::finish(int64_t arena_bytes, int output) {
  need(!finished_ && !building_.empty(), "the program is empty or finished");
  need(arena_bytes >= needed_arena_ && arena_bytes <= kMaxBytes, "the arena is too small");
  tensor(output);
  arena_bytes_ = arena_bytes, output_ = output;
  for (auto& b : building_) {
    chain_steps(b->steps, b->segments);
    b->op.segments = b->segments.data(), b->op.segment_count = static_cast<int64_t>(b->segments.size());
    b->op.step_count = static_cast<int64_t>(b->steps.size());
    int64_t live = 0;
    for (const Step& s : b->steps) live += s.live ? padded(s.width) : 0;
    if (live * kTileRows <= kNearFloats) b->op.body_rows = kTileRows;
    b->op.parts = b->parts.data(), b->op.part_count = static_cast<int64_t>(b->parts.size());
    if (b->op.kind == Operation::kConcat) {
      int64_t count = 0;
      for (const Part& part : b->parts) count += part.count;
      need(count == b->op.rows, "rows are not those of the parts");
    }
    const Operation& op = b->op;
    const int64_t floats = op.tile_floats + op.extra_floats + op.slot_floats * op.body_rows + 256;
    if (floats > scratch_floats_) scratch_floats_ = floats;
    const int index = static_cast<int>(operations_.size());
    if (!b->joins) {
      if (is_scan(op)) phases_.push_back({index, index, true, 0, kTaskBlocks});
      phases_.push_back({index, index, false, 0, 0});
    }
    if (is_scan(op)) phases_[phases_.size() - 2].last = index + 1;
    phases_.back().last = index + 1;
    operations_.push_back(op);
  }
  // What a phase of rows does is in bodies, but scans write codes themselves.
  const auto idle = [&](const Phase& phase) {
    return !phase.scan && std::all_of(operations_.begin() + phase.first, operations_.begin() + phase.last,
                                      [](const Operation& op) { return op.step_count == 0; });
  };
  phases_.erase(std::remove_if(phases_.begin(), phases_.end(), idle), phases_.end());
  for (Phase& phase : phases_) {
    if (phase.scan) {
      const auto count = [&] {
        phase.tasks = 0;
        for (int op = phase.first; op < phase.last; ++op) phase.tasks += scan_tasks(operations_[op], phase.each);
        return phase.tasks;
      };
      while (count() > kMaxTasks) phase.each *= 2;
      continue;
    }
    double cost = 0;
    for (int op = phase.first; op < phase.last; ++op) {
      cost += row_nanoseconds(operations_[op]);
      if (operations_[op].int_linear.tiled) phase.rows = kernels_->rows;
    }
    const int64_t rows = operations_[phase.first].rows, tiles = (rows + phase.rows - 1) / phase.rows;
    int64_t each = static_cast<int64_t>(kTaskNanoseconds / (cost * static_cast<double>(phase.rows))) + 1;
    if (each < (tiles + kMaxTasks - 1) / kMaxTasks) each = (tiles + kMaxTasks - 1) / kMaxTasks;
    phase.each = each * phase.rows, phase.tasks = (rows + phase.each - 1) / phase.each;
  }
  finished_ = true;
}

// --- running

int64_t Engine::output_width() const { return output_ < 0 ? 0 : tensors_[output_].width; }

void Engine::run_phase(Worker& worker, char* arena, const Phase& phase, int64_t image_index, int64_t task,
                       const float* image) {
  Frame f = {tensors_.data(), arena, image, channels_, size_, worker.scratch};
  double start = profile_ ? now() : 0;
  const auto charge = [&](double& to) {
    if (!profile_) return;
    const double end = now();
    to += end - start;
    start = end;
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
    return;
  }
  const int64_t first = task * phase.each, rows = operations_[phase.first].rows, end = first + phase.each < rows ? first + phase.each : rows;
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
  const char* row = worker.arena + t.offset;
  if (!t.codes) {
    std::memcpy(out, row, t.width * sizeof(float));
    return;
  }
  const Quantizer& q = *t.codes;
  for (int64_t c = 0; c < t.width; ++c) {
    const uint8_t code = static_cast<uint8_t>(row[c]);
    const float x = q.table ? q.table[code] : static_cast<float>(code) - (q.zero ? q.zero[c] : q.zero_token[0]);
    out[c] = (x * q.step[c]) * q.step_token[0];
  }
}

void Engine::participate(Run& run) {
  const int index = run.joined.fetch_add(1);
  if (index >= run.threads) return;
  const FloatMode mode;
  index ? run.help(index) : run.lead(index);
}

void Engine::run(const float* images, int64_t batch, float* out, int threads) {
  std::lock_guard<std::mutex> lock(mutex_);
  need(finished_, "the program is not finished");
  need(threads >= 1 && threads <= 1024, "a thread count out of range");
  if (batch <= 0) return;
  // Whole images to each thread as long as there is one for all; the rest together, and a single thread all of them.
  const int64_t most = batch < kMaxTasks ? batch : kMaxTasks;
  Run run{*this, images, batch, most / threads * threads, out, threads};
  while (static_cast<int>(workers_.size()) < threads) workers_.push_back(std::make_unique<Worker>());
  for (int i = 0; i < threads; ++i) {
    Worker& w = *workers_[i];
    w.prepared = -1;
    const auto allocate = [](int64_t bytes) {
      void* memory = std::aligned_alloc(64, static_cast<size_t>(padded(bytes + 1024, 64)));
      if (!memory) throw std::bad_alloc();
      std::memset(memory, 0, static_cast<size_t>(bytes + 1024));
      return memory;
    };
    if (!w.scratch) w.scratch = static_cast<float*>(allocate(scratch_floats_ * 4));
    if (!w.arena && (i == 0 || run.whole > 0)) w.arena = static_cast<char*>(allocate(arena_bytes_));
  }
  run_tasks(threads, threads, [](void* context, int64_t) {
    Run& r = *static_cast<Run*>(context);
    r.engine.participate(r);
  }, &run);
}

void Engine::read_tensor(int index, void* out, int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Tensor& t = tensor(index);
  const int64_t element = t.codes ? 1 : 4;
  need(last_ != nullptr && bytes == t.rows * t.width * element, "no image was run, or the size differs");
  for (int64_t r = 0; r < t.rows; ++r)
    std::memcpy(static_cast<char*>(out) + r * t.width * element, last_->arena + t.offset + r * t.stride * element,
                static_cast<size_t>(t.width * element));
}

std::vector<std::string> Engine::bodies() const {
  std::vector<std::string> found;
  for (const Operation& op : operations_) {
    std::string body;
    for (const Segment* g = op.segments; g != op.segments + op.segment_count; ++g)
      for (int64_t i = 0; i < g->count; ++i) {
        if (!body.empty()) body += i ? " " : " | ";
        body += kOpNames[g->steps[i].op];
      }
    found.push_back(body);
  }
  return found;
}

void Engine::enable_profile(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  profile_ = on;
  for (auto& w : workers_)
    for (int k = 0; k < kKinds; ++k) w->source_seconds[k] = w->body_seconds[k] = 0;
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

void Engine::run_alone(const std::vector<Input>& inputs, int64_t batch, float* out, int threads) {
  std::lock_guard<std::mutex> lock(mutex_);
  need(finished_ && operations_.size() == 1, "no program of one operation");
  need(threads >= 1 && threads <= 1024, "a thread count out of range");
  for (const Input& input : inputs) tensor(input.tensor);
  const Operation& op = operations_[0];
  const Tensor& result = tensors_[output_];
  need(!result.codes && result.rows == op.rows, "the result is not a float for each row");
  auto image = [&](int64_t b) {
    const FloatMode mode;
    std::vector<std::max_align_t> room((arena_bytes_ + scratch_floats_ * 4 + 256) / sizeof(std::max_align_t) + 1);
    char* arena = reinterpret_cast<char*>(padded(reinterpret_cast<int64_t>(room.data()), 64));
    Frame f = {tensors_.data(), arena, nullptr, channels_, size_,
               reinterpret_cast<float*>(arena + padded(arena_bytes_, 64))};
    for (const Input& input : inputs) {
      const Tensor& t = tensors_[input.tensor];
      const int64_t element = t.codes ? 1 : 4, row = t.width * element;
      const char* from = static_cast<const char*>(input.data) + b * t.rows * row;
      for (int64_t r = 0; r < t.rows; ++r)
        std::memcpy(arena + t.offset + r * t.stride * element, from + r * row, row);
    }
    if (is_scan(op)) {
      kernels_->prepare_scan(op, f);
      for (int64_t block = 0; block < padded(op.width) / kChannels; ++block) kernels_->scan(op, f, block);
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
