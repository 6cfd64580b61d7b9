// Which instruction sets this build and this machine have. Each level is one translation unit with its own flags.
#pragma once
#include "kernels.h"

namespace visq {

// Kernels of one level; nullptr where this build has none (another architecture).
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

// Kernels of a level by name; nullptr when the name is unknown, or this build or machine lacks it.
const Kernels* kernels_named(const char* name);

}  // namespace visq
