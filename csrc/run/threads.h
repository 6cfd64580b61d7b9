// Runs work on several threads: on the OpenMP runtime of torch if Python hands over its entry point, else on a small pool of
// our own. A second set of busy threads beside torch's would make both slow, because OpenMP's workers spin between parallel
// regions (a training step took twice as long on two cores).
//
// Neither the number of tasks nor what they do depends on the number of threads, and each task writes its own output, so
// results have the same bits on any number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shared.h"

namespace visq {

using TaskFn = void (*)(void* context, int64_t task);

// Runs fn(context, i) for i in [0, tasks) on up to `threads` threads, the caller included. Everything runs on the caller
// where the pool is busy with another Python thread's work, or where a task makes this call.
void run_tasks(int64_t tasks, int threads, TaskFn fn, void* context);

// Sets the OpenMP runtime to run on, by the address of its GOMP_parallel; 0 for our own pool.
void use_openmp(uintptr_t gomp_parallel);

// Processors that the calling thread may use.
int processors();

// Returns the calling thread's scratch, aligned to 64 bytes. It holds anything, until the thread's next call.
float* scratch(size_t floats);

// Zeroed memory of one kernel call, aligned to 64 bytes.
class Buffer {
 public:
  explicit Buffer(size_t floats);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  VISQ_SHARED float* data() const { return data_; }

 private:
  float* data_;
};

template <class F>
static inline void parallel_for(int64_t tasks, int threads, F& body) {
  run_tasks(tasks, threads, [](void* f, int64_t task) { (*static_cast<F*>(f))(task); }, &body);
}

}  // namespace visq
