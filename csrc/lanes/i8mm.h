// NEON with i8mm: a product takes four bytes of a row, unsigned, and four weights, signed.
#pragma once
#include "lanes/neon_bytes.h"

namespace visq::VISQ_LEVEL {

struct Vector : NeonBytes {
  VISQ_INLINE I dot(I sum, I w, I x) {
    return vusdotq_s32(sum, vreinterpretq_u8_s32(x), vreinterpretq_s8_s32(w));
  }
};

}  // namespace visq::VISQ_LEVEL
