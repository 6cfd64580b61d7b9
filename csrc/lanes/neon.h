// NEON of ARMv8-A: a product takes two shorts.
#pragma once
#include "lanes/neon_base.h"

namespace visq::VISQ_LEVEL {

struct Vector : Neon {};

}  // namespace visq::VISQ_LEVEL
