// A mutex that survives fork().
#pragma once
#include <atomic>
#include <mutex>

namespace visq {

// A forked child has only the thread that forked. A mutex that another thread held would stay locked for ever, so the
// child gets it unlocked, and learns that what it guards may be half changed.
class ForkMutex {
 public:
  ForkMutex();
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock();
  void unlock();

  // Whether a thread of the parent held it when this process was forked. True once; call it with the mutex locked.
  bool take_interrupted();

 private:
  friend struct ForkMutexes;
  void start_over();  // in the child

  std::mutex mutex_;
  std::atomic<bool> held_{false};
  bool interrupted_ = false;
};

}  // namespace visq
