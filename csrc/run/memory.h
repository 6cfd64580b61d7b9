// How much memory the machine has.
#pragma once
#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace visq {

// Physical memory in bytes; a large number where the system does not say. A fuzzer says how much there is for it.
inline int64_t machine_memory() {
#if defined(VISQ_MACHINE_MEMORY)
  return VISQ_MACHINE_MEMORY;
#elif defined(_SC_PHYS_PAGES)
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  if (pages > 0 && page > 0) return pages * page;
#endif
  return int64_t{1} << 46;
}

}  // namespace visq
