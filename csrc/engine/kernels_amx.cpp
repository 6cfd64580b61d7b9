#include "program.h"
#if defined(VISQ_AMX) && defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#define VISQ_TILES
#include "tiled_linear.h"
#endif

namespace visq::engine {

const Kernels* amx_kernels() {
#ifdef VISQ_TILES
  return tiled_kernels<AmxTiles>("amx");
#else
  return nullptr;
#endif
}

}  // namespace visq::engine
