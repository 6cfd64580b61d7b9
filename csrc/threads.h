// Work on several threads: on the OpenMP runtime torch has loaded, when Python hands us its entry point, otherwise on a
// small pool of our own. Never on a second OpenMP runtime or a second set of busy threads beside torch's: its workers
// spin between parallel regions, and whoever else wants the cores waits for them (measured: twice the time of a
// training step on two cores).
//
// Work is cut into tasks whose number and contents never depend on the thread count, and every task writes its own
// output, so results are bit-identical for any number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace visq {

using TaskFn = void (*)(void* context, int64_t task);

// Runs fn(context, i) for i in [0, tasks) on up to `threads` threads, the caller included. When the pool is busy
// (another Python thread is inside, or this is a nested call), everything runs on the calling thread.
void run_tasks(int64_t tasks, int threads, TaskFn fn, void* context);

// The address of GOMP_parallel in the OpenMP runtime to run on; 0 for our own pool.
void use_openmp(uintptr_t gomp_parallel);

// 64-byte aligned scratch of the calling thread; contents undefined, valid until its next call of scratch().
float* scratch(size_t floats);

// 64-byte aligned zeroed memory owned by one kernel call.
class Buffer {
 public:
  explicit Buffer(size_t floats);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

template <class F>
static inline void parallel_for(int64_t tasks, int threads, F& body) {
  run_tasks(tasks, threads, [](void* f, int64_t task) { (*static_cast<F*>(f))(task); }, &body);
}

}  // namespace visq
