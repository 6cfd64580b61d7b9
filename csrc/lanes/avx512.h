// AVX-512 F, BW, VL and DQ.
#pragma once
#include "lanes/avx512_base.h"

namespace visq::VISQ_LEVEL {

struct Vector : Avx512 {
  VISQ_INLINE I dot(I sum, I w, I x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
  VISQ_INLINE Pair nibbles(I packed) {
    const I low = _mm512_set1_epi8(15);
    const I values = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
    return {_mm512_shuffle_epi8(values, _mm512_and_si512(packed, low)),
            _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(packed, 4), low))};
  }
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const I products = _mm512_add_epi16(_mm512_maddubs_epi16(x.first, w.first),
                                        _mm512_maddubs_epi16(x.second, w.second));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(products, _mm512_set1_epi16(1)));
  }
  VISQ_INLINE I dot16(I sum, S a, S b) { return dot(sum, a, b); }
  VISQ_INLINE S funnel(S high, S low, Count n, Count rest) {
    return _mm512_or_si512(_mm512_sllv_epi16(high, n), _mm512_srlv_epi16(low, rest));
  }
};

}  // namespace visq::VISQ_LEVEL
