// What the levels of 64-bit ARM with products of bytes share.
#pragma once
#include "lanes/neon_base.h"

namespace visq::VISQ_LEVEL {

struct NeonBytes : Neon {
  static constexpr int kStep = 4;
  // As in avx512vnni.h: the weights of 4 bits of the first or second product, times 16, which `sixteenth` undoes.
  template <bool kSecond>
  VISQ_INLINE I nibbles(I packed) {
    const int8x16_t x = vreinterpretq_s8_s32(packed);
    return vreinterpretq_s32_s8(kSecond ? vandq_s8(x, vdupq_n_s8(-16)) : vshlq_n_s8(x, 4));
  }
  VISQ_INLINE I sixteenth(I x) { return vshrq_n_s32(x, 4); }
};

}  // namespace visq::VISQ_LEVEL
