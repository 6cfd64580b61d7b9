// AVX-512 with VNNI and VBMI2: a product takes four bytes, not two shorts.
#pragma once
#include "lanes/avx512_base.h"

namespace visq::VISQ_LEVEL {

struct Vector : Avx512 {
  static constexpr int kStep = 4;
  VISQ_INLINE I dot(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, x, w); }
  // The weights of 4 bits of the first or second product, times 16: extending their signs takes one instruction more.
  // `sixteenth` undoes the factor once, on the whole sum.
  template <bool kSecond>
  VISQ_INLINE I nibbles(I packed) {
    return _mm512_and_si512(kSecond ? packed : _mm512_slli_epi16(packed, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
  }
  VISQ_INLINE I sixteenth(I x) { return _mm512_srai_epi32(x, 4); }
  // Turns 64 bytes of each of four rows into the four bytes of every column, 16 columns a vector.
  VISQ_INLINE void interleave(const uint8_t* const* rows, I* out) {
    // Unpacking works within quarters of a vector, so quarter q first gets columns 4 q to 4 q + 3 of each 16.
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    I row[4];
    for (int k = 0; k < 4; ++k) row[k] = _mm512_permutexvar_epi32(order, weights(rows[k]));
    const I low[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpacklo_epi8(row[2], row[3])};
    const I high[2] = {_mm512_unpackhi_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[2], row[3])};
    out[0] = _mm512_unpacklo_epi16(low[0], low[1]), out[1] = _mm512_unpackhi_epi16(low[0], low[1]);
    out[2] = _mm512_unpacklo_epi16(high[0], high[1]), out[3] = _mm512_unpackhi_epi16(high[0], high[1]);
  }
  VISQ_INLINE I dot16(I sum, S a, S b) { return _mm512_dpwssd_epi32(sum, a, b); }
  VISQ_INLINE S funnel(S high, S low, Count n, Count) { return _mm512_shldv_epi16(high, low, n); }
};

}  // namespace visq::VISQ_LEVEL
