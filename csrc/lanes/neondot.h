// NEON with dotprod: a product takes four bytes, both signed.
#pragma once
#include "lanes/neon_bytes.h"

namespace visq::VISQ_LEVEL {

struct Vector : NeonBytes {
  static constexpr int kOffset = 128;
  // A byte with its highest bit inverted is the byte less 128.
  VISQ_INLINE I dot(I sum, I w, I x) {
    const int8x16_t less = veorq_s8(vreinterpretq_s8_s32(x), vdupq_n_s8(-128));
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), less);
  }
};

}  // namespace visq::VISQ_LEVEL
