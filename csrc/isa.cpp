#include "isa.h"

#include "program/program.h"
#if defined(__x86_64__) && !defined(VISQ_SCALAR_ONLY)
#define VISQ_X86 1
#endif
#if defined(__aarch64__) && !defined(VISQ_SCALAR_ONLY)
#define VISQ_ARM 1
#endif
#if defined(__EMSCRIPTEN__) && !defined(VISQ_SCALAR_ONLY)
#define VISQ_WASM 1
#endif
#if defined(VISQ_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(VISQ_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Each level is compiled from kernels/engine_level.cpp (cmake/levels.cmake). ops/levels.cpp lists those of visq.ops.
#define VISQ_ENGINE_LEVEL(level) \
  namespace visq::engine::level { \
  const EngineKernels* kernels(); \
  }

VISQ_ENGINE_LEVEL(scalar)
#if defined(VISQ_TEST_LEVELS)
VISQ_ENGINE_LEVEL(portable)
#endif
#if defined(VISQ_X86)
VISQ_ENGINE_LEVEL(avx2)
VISQ_ENGINE_LEVEL(avx512)
VISQ_ENGINE_LEVEL(avx512vnni)
#if defined(VISQ_TEST_LEVELS)
VISQ_ENGINE_LEVEL(amx_emulated)
#endif
#endif
#if defined(VISQ_HAS_AMX)
VISQ_ENGINE_LEVEL(amx)
#endif
#if defined(VISQ_ARM)
VISQ_ENGINE_LEVEL(neon)
VISQ_ENGINE_LEVEL(neondot)
VISQ_ENGINE_LEVEL(i8mm)
#endif
#if defined(VISQ_WASM)
VISQ_ENGINE_LEVEL(wasm128)
#endif

namespace visq {
namespace {

bool always() { return true; }

#if defined(VISQ_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_avx2();
}

bool has_avx512vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
}

#if defined(VISQ_HAS_AMX)
// Linux saves the tile registers only for a process that has asked for them, once for all its threads. XGETBV exists
// wherever AVX-512 does.
bool may_use_tiles() {
  constexpr unsigned kTileAndInt8 = 1u << 24 | 1u << 25, kTileState = 1u << 17 | 1u << 18;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kTileAndInt8) != kTileAndInt8) return false;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  static const bool found = has_avx512vnni() && may_use_tiles();
  return found;
}
#endif
#endif

#if defined(VISQ_ARM)
// What Linux says of the processor; elsewhere nothing is known, and `neon` runs.
#if defined(__linux__)
bool has_neondot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
bool has_i8mm() { return has_neondot() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM); }
#else
bool has_neondot() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

struct Level {
  const char* name;
  bool (*present)();
  const engine::EngineKernels* (*engine)();
  bool chosen = true;  // false: runs only when named, for tests
};

// Fastest first.
const Level kLevels[] = {
#if defined(VISQ_X86)
#if defined(VISQ_HAS_AMX)
    {"amx", has_amx, engine::amx::kernels},
#endif
#if defined(VISQ_TEST_LEVELS)
    {"amx-emulated", has_avx512vnni, engine::amx_emulated::kernels, false},
#endif
    {"avx512vnni", has_avx512vnni, engine::avx512vnni::kernels},
    {"avx512", has_avx512, engine::avx512::kernels},
    {"avx2", has_avx2, engine::avx2::kernels},
#endif
#if defined(VISQ_ARM)
    {"i8mm", has_i8mm, engine::i8mm::kernels},
    {"neondot", has_neondot, engine::neondot::kernels},
    {"neon", always, engine::neon::kernels},
#endif
#if defined(VISQ_WASM)
    {"wasm128", always, engine::wasm128::kernels},
#endif
#if defined(VISQ_TEST_LEVELS)
    {"portable", always, engine::portable::kernels, false},
#endif
    {"scalar", always, engine::scalar::kernels},
};

}  // namespace

const engine::EngineKernels* engine_kernels(const std::string& name) {
#if defined(VISQ_X86)
  __builtin_cpu_init();
#endif
  for (const Level& level : kLevels)
    if (name == level.name) return level.present() ? level.engine() : nullptr;
  return nullptr;
}

std::string fastest_level() {
  for (const Level& level : kLevels)
    if (level.chosen && engine_kernels(level.name)) return level.name;
  return "scalar";
}

std::string levels_here() {
  std::string names;
  for (const Level& level : kLevels)
    if (level.chosen && engine_kernels(level.name)) names += (names.empty() ? "" : ", ") + std::string(level.name);
  return names;
}

}  // namespace visq
