#include "isa.h"

#include <cstring>

namespace visq {
namespace {

bool machine_has(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return !std::strcmp(name, "scalar");
}

}  // namespace

const Kernels* kernels_named(const char* name) {
  if (!machine_has(name)) return nullptr;
  if (!std::strcmp(name, "avx512")) return avx512_kernels();
  if (!std::strcmp(name, "avx2")) return avx2_kernels();
  return scalar_kernels();
}

}  // namespace visq
