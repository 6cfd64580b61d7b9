#include "program.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "kernel_table.h"
#endif

namespace visq::engine {

const Kernels* avx512vnni_kernels() {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
  return kernel_table<VecVnni>("avx512vnni");
#else
  return nullptr;
#endif
}

}  // namespace visq::engine
