#include "program.h"
#if defined(__AVX2__)
#include "kernel_table.h"
#endif

namespace visq::engine {

const Kernels* avx2_kernels() {
#if defined(__AVX2__)
  return kernel_table<VecAvx2>("avx2");
#else
  return nullptr;
#endif
}

}  // namespace visq::engine
