// Which kernels this machine can run. Compiled for any machine.
#include <cstring>

#include "program.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace visq::engine {
namespace {

#if defined(__x86_64__) && defined(__linux__)
// Whether the processor has AMX for bytes, the system keeps its registers, and this process may use them: Linux wants
// to be asked, once for all threads. Call only where AVX-512 was found: XGETBV is there then.
bool may_use_amx() {
  constexpr unsigned kTileAndInt8 = 1u << 24 | 1u << 25, kTileState = 1u << 17 | 1u << 18;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kTileAndInt8) != kTileAndInt8) return false;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool may_use_amx() { return false; }
#endif

}  // namespace

const Kernels* kernels_named(const char* name) {
  const auto is = [name](const char* other) { return !std::strcmp(name, other); };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
  if (is("amx")) {
    static const bool amx = vnni && may_use_amx();
    return amx ? amx_kernels() : nullptr;
  }
  if (is("amx-emulated")) return vnni ? amx_emulated_kernels() : nullptr;
  if (is("avx512vnni")) return vnni ? avx512vnni_kernels() : nullptr;
  if (is("avx512")) return avx512 ? avx512_kernels() : nullptr;
  if (is("avx2")) return __builtin_cpu_supports("avx2") ? avx2_kernels() : nullptr;
#endif
  return is("scalar") ? scalar_kernels() : nullptr;
}

}  // namespace visq::engine
