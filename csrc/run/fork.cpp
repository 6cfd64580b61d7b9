#include "run/fork.h"

#include <pthread.h>

#include <algorithm>
#include <new>
#include <vector>

namespace visq {

// All of them. Never destroyed, because a mutex may outlive static objects.
struct ForkMutexes {
  std::mutex mutex;  // held across a fork, so that the child finds the list whole
  std::vector<ForkMutex*> all;

  static ForkMutexes& get() {
    static ForkMutexes* const instance = [] {
      auto* made = new ForkMutexes;
      pthread_atfork([] { get().mutex.lock(); }, [] { get().mutex.unlock(); }, [] { get().after_fork(); });
      return made;
    }();
    return *instance;
  }

  void after_fork() {
    new (&mutex) std::mutex;
    for (ForkMutex* one : all) one->start_over();
  }
};

ForkMutex::ForkMutex() {
  ForkMutexes& mutexes = ForkMutexes::get();
  std::lock_guard<std::mutex> lock(mutexes.mutex);
  mutexes.all.push_back(this);
}

ForkMutex::~ForkMutex() {
  ForkMutexes& mutexes = ForkMutexes::get();
  std::lock_guard<std::mutex> lock(mutexes.mutex);
  mutexes.all.erase(std::remove(mutexes.all.begin(), mutexes.all.end(), this), mutexes.all.end());
}

void ForkMutex::lock() {
  mutex_.lock();
  held_.store(true, std::memory_order_relaxed);
}

void ForkMutex::unlock() {
  held_.store(false, std::memory_order_relaxed);
  mutex_.unlock();
}

void ForkMutex::start_over() {
  interrupted_ = interrupted_ || held_.load(std::memory_order_relaxed);
  held_.store(false, std::memory_order_relaxed);
  new (&mutex_) std::mutex;
}

bool ForkMutex::take_interrupted() {
  const bool found = interrupted_;
  interrupted_ = false;
  return found;
}

}  // namespace visq
