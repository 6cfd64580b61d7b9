#include "program.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "tiled_linear.h"
#include "tiles_emulated.h"
#endif

namespace visq::engine {

const Kernels* amx_emulated_kernels() {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
  return tiled_kernels<EmulatedTiles>("amx-emulated");
#else
  return nullptr;
#endif
}

}  // namespace visq::engine
