// Sleeping until another thread changes a word. On a busy machine a sleeper gets a core as soon as it is woken, where a
// thread that spins or yields first waits for the time slices of others.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace visq {

using Word = std::atomic<uint32_t>;
static_assert(sizeof(Word) == sizeof(uint32_t));

// Returns when the word is no longer `value`, or earlier.
inline void sleep_while(Word& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load() == value) std::this_thread::yield();
#endif
}

inline void wake_all(Word& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// One turn of a short wait.
inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace visq
