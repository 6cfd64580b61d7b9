#include "program.h"
#if defined(__AVX512F__)
#include "kernel_table.h"
#endif

namespace visq::engine {

const Kernels* avx512_kernels() {
#if defined(__AVX512F__)
  return kernel_table<VecAvx512>("avx512");
#else
  return nullptr;
#endif
}

}  // namespace visq::engine
