#include "run/threads.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace visq {
namespace {

class Pool {
 public:
  // Runs one job at a time. Returns false where another thread's job holds the pool.
  bool try_run(int64_t tasks, int threads, TaskFn fn, void* context) {
    std::unique_lock<std::mutex> job(job_mutex_, std::try_to_lock);
    if (!job.owns_lock()) return false;
    const int helpers = static_cast<int>(threads - 1 < tasks - 1 ? threads - 1 : tasks - 1);
    grow(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      fn_ = fn, context_ = context, tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = helpers;
      open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;  // from now on a helper that wakes finds nothing, so it is not waited for
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void grow(int helpers) {
    while (static_cast<int>(workers_.size()) < helpers) {
      const int index = static_cast<int>(workers_.size());
      workers_.emplace_back([this, index, seen = generation_]() mutable { serve(index, seen); });
    }
  }

  void serve(int index, uint64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (index >= wanted_ || !open_) continue;
        ++active_;
      }
      work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  void work() {
    for (;;) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) return;
      fn_(context_, task);
    }
  }

  std::mutex job_mutex_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::atomic<int64_t> next_{0};
  TaskFn fn_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  int wanted_ = 0, active_ = 0;
  bool open_ = false;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads wait for work until the process ends, and joining them then could hang.
std::atomic<Pool*> pool{nullptr};

// A forked child has none of the pool's threads, and perhaps its mutex locked, so it starts over with a new pool.
void forget_pool() { pool.store(nullptr); }

Pool* get_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  Pool* current = pool.load();
  if (current) return current;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh)) return fresh;
  delete fresh;  // another thread was first; this one has no workers yet
  return current;
}

thread_local bool inside_task = false;

// GNU OpenMP's parallel region: runs fn(data) once on each of `threads` threads and waits for all.
using GompParallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

struct Region {
  TaskFn fn;
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  static void run(void* data) {
    Region& region = *static_cast<Region*>(data);
    const bool before = inside_task;
    inside_task = true;
    for (int64_t task; (task = region.next.fetch_add(1, std::memory_order_relaxed)) < region.tasks;)
      region.fn(region.context, task);
    inside_task = before;
  }
};

float* allocate(size_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
  if (!memory) throw std::bad_alloc();
  return static_cast<float*>(memory);
}

struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
};
thread_local Scratch thread_scratch;

}  // namespace

void run_tasks(int64_t tasks, int threads, TaskFn fn, void* context) {
  if (tasks <= 0) return;
  if (threads > 1 && tasks > 1 && !inside_task) {
    // OpenMP's threads spin while they wait, which keeps the others from working where there are too few processors.
    GompParallel parallel = gomp_parallel.load(std::memory_order_relaxed);
    if (parallel && threads <= processors()) {
      Region region{fn, context, tasks};
      parallel(Region::run, &region, static_cast<unsigned>(threads < tasks ? threads : tasks), 0);
      return;
    }
    inside_task = true;
    const bool ran = get_pool()->try_run(tasks, threads, fn, context);
    inside_task = false;
    if (ran) return;
  }
  for (int64_t task = 0; task < tasks; ++task) fn(context, task);
}

int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
  const unsigned found = std::thread::hardware_concurrency();  // 0 where it is unknown
  return found ? static_cast<int>(found) : 1024;
}

void use_openmp(uintptr_t address) {
  // A forked child has none of the OpenMP threads either, so it goes on with a pool of its own.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { gomp_parallel.store(nullptr); });
  (void)registered;
  gomp_parallel.store(reinterpret_cast<GompParallel>(address));
}

float* scratch(size_t floats) {
  if (thread_scratch.size < floats) {
    std::free(thread_scratch.data);
    thread_scratch.data = nullptr;
    thread_scratch.size = 0;
    thread_scratch.data = allocate(floats);
    thread_scratch.size = floats;
  }
  return thread_scratch.data;
}

Buffer::Buffer(size_t floats) : data_(allocate(floats)) { std::memset(data_, 0, floats * sizeof(float)); }
Buffer::~Buffer() { std::free(data_); }

}  // namespace visq
