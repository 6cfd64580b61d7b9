// The levels of visq.ops. They are fewer than the engine's: visq.ops has no use for integer products.
#include "isa.h"
#include "ops/ops.h"

// Each level is compiled from ops/ops_level.cpp (cmake/levels.cmake).
#define VISQ_OPS_LEVEL(level) \
  namespace visq::ops::level { \
  const OpKernels* kernels(); \
  }

VISQ_OPS_LEVEL(scalar)
#if defined(__x86_64__)
VISQ_OPS_LEVEL(avx2)
VISQ_OPS_LEVEL(avx512)
#endif

namespace visq {

const ops::OpKernels* op_kernels(const std::string& name) {
  static constexpr struct {
    const char* name;
    const ops::OpKernels* (*kernels)();
  } levels[] = {
      {"scalar", ops::scalar::kernels},
#if defined(__x86_64__)
      {"avx2", ops::avx2::kernels},
      {"avx512", ops::avx512::kernels},
#endif
  };
  for (const auto& level : levels)
    // The engine has every level of visq.ops, and knows which machines have it.
    if (name == level.name) return engine_kernels(name) ? level.kernels() : nullptr;
  return nullptr;
}

}  // namespace visq
