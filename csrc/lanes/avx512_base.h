// What the levels with AVX-512 share: 16 floats.
#pragma once
#include <immintrin.h>

#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct Avx512Types {
  using T = __m512;
  using I = __m512i;
  using S = __m512i;
};

struct Avx512 : Generic<Avx512Types> {
  static constexpr bool kSearches = true, kSpreads = true;

  // --- floats

  VISQ_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  VISQ_INLINE T zero() { return _mm512_setzero_ps(); }
  VISQ_INLINE T set1(float x) { return _mm512_set1_ps(x); }
  VISQ_INLINE T load(const float* p) { return _mm512_loadu_ps(p); }
  VISQ_INLINE T load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  VISQ_INLINE void store(float* p, T v) { _mm512_storeu_ps(p, v); }
  VISQ_INLINE void store_n(float* p, T v, int n) { _mm512_mask_storeu_ps(p, mask(n), v); }
  VISQ_INLINE T add(T a, T b) { return _mm512_add_ps(a, b); }
  VISQ_INLINE T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  VISQ_INLINE T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  VISQ_INLINE T div(T a, T b) { return _mm512_div_ps(a, b); }
  VISQ_INLINE T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  VISQ_INLINE T fnma(T a, T b, T c) { return _mm512_fnmadd_ps(a, b, c); }
  VISQ_INLINE T min(T a, T b) { return _mm512_min_ps(a, b); }
  VISQ_INLINE T max(T a, T b) { return _mm512_max_ps(a, b); }
  // Returns x, or `most` with the sign of x where |x| is larger. NaN becomes either of the two limits.
  VISQ_INLINE T within(T x, T most) { return _mm512_range_ps(x, most, 2); }
  VISQ_INLINE T abs(T a) { return _mm512_abs_ps(a); }
  VISQ_INLINE T rint(T a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  template <int U>
  VISQ_INLINE void exp2(T* x) {
    T n[U], r[U];
    for (int j = 0; j < U; ++j) x[j] = max(set1(-152.0f), x[j]);  // for -inf; large x overflow by themselves
    for (int j = 0; j < U; ++j) n[j] = rint(x[j]);
    for (int j = 0; j < U; ++j) r[j] = sub(x[j], n[j]);
    exp2_fraction<Avx512, U>(r, x);
    for (int j = 0; j < U; ++j) x[j] = _mm512_scalef_ps(x[j], n[j]);
  }
  VISQ_INLINE __m128 fold(T a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  }
  VISQ_INLINE float hsum(T a) {
    __m128 x = fold(a);
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  VISQ_INLINE void add_hsum4(const T* a, float* out) {
    const __m128 x = _mm_hadd_ps(fold(a[0]), fold(a[1])), y = _mm_hadd_ps(fold(a[2]), fold(a[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), _mm_hadd_ps(x, y)));
  }
  VISQ_INLINE T keep_within(T v, T x, T lo, T hi) {
    const __mmask16 m = _mm512_cmp_ps_mask(x, lo, _CMP_GE_OQ) & _mm512_cmp_ps_mask(x, hi, _CMP_LE_OQ);
    return _mm512_maskz_mov_ps(m, v);
  }
  VISQ_INLINE T nan_from(T v, T x) { return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x); }
  // Permutes, because gathers are slow on many machines. Thresholds lie in blocks of 16. A binary search over the last
  // threshold of each block finds the block, a second one inside the block finds the position.
  struct Lookup {
    T values[16], thresholds[16], last_of_block;
    int pairs;  // of blocks in use

    __attribute__((always_inline)) Lookup(const float* v, const float* t, int count) : pairs(count / 32 + 1) {
      alignas(64) float last[16];
      for (int b = 0; b < 16; ++b) {
        last[b] = 16 * b + 15 < count ? t[16 * b + 15] : __builtin_inff();
        if (b >= 2 * pairs) continue;
        thresholds[b] = _mm512_mask_loadu_ps(set1(__builtin_inff()), filled(count - 16 * b), t + 16 * b);
        values[b] = _mm512_maskz_loadu_ps(filled(count + 1 - 16 * b), v + 16 * b);
      }
      last_of_block = load(last);
    }
    VISQ_INLINE __mmask16 filled(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1u); }

    __attribute__((always_inline)) T operator()(T x) const {
      __m512i block = _mm512_setzero_si512(), at = block;
      for (int half = 8; half; half /= 2) {
        const T probe = _mm512_permutexvar_ps(_mm512_add_epi32(block, _mm512_set1_epi32(half - 1)), last_of_block);
        block = advance(block, half, probe, x);
      }
      const __m512i pair = _mm512_srli_epi32(block, 1);
      const __m512i in_pair = _mm512_slli_epi32(_mm512_and_si512(block, _mm512_set1_epi32(1)), 4);
      at = in_pair;
      for (int half = 8; half; half /= 2)
        at = advance(at, half, pick(thresholds, pair, _mm512_add_epi32(at, _mm512_set1_epi32(half - 1))), x);
      return pick(values, pair, at);
    }
    VISQ_INLINE __m512i advance(__m512i at, int half, T probe, T x) {
      return _mm512_mask_add_epi32(at, _mm512_cmp_ps_mask(probe, x, _CMP_LT_OQ), at, _mm512_set1_epi32(half));
    }
    // table[32 pair + at], lane by lane
    T pick(const T* table, __m512i pair, __m512i at) const {
      T found = _mm512_permutex2var_ps(table[0], at, table[1]);
      for (int p = 1; p < pairs; ++p)
        found = _mm512_mask_mov_ps(found, _mm512_cmpeq_epi32_mask(pair, _mm512_set1_epi32(p)),
                                   _mm512_permutex2var_ps(table[2 * p], at, table[2 * p + 1]));
      return found;
    }
  };

  // --- bytes and integers

  VISQ_INLINE I ibytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  VISQ_INLINE T bytes(const uint8_t* p) { return _mm512_cvtepi32_ps(ibytes(p)); }
  VISQ_INLINE void to_bytes(uint8_t* p, T x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
  }
  VISQ_INLINE __m512i shorts(T a, T b) {
    return _mm512_packs_epi32(_mm512_cvttps_epi32(a), _mm512_cvttps_epi32(b));
  }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) { store_bytes(p, shorts(x[0], x[1]), shorts(x[2], x[3])); }
  // Packing works within quarters of a vector, so the 32-bit pieces must be put in order afterwards.
  VISQ_INLINE void store_bytes(uint8_t* p, __m512i a, __m512i b) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b)));
  }
  VISQ_INLINE __m512i rounded(T a, T b) {
    const T most = _mm512_set1_ps(32767.0f);
    return _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_min_ps(a, most)), _mm512_cvtps_epi32(_mm512_min_ps(b, most)));
  }
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, __m512i zero01, __m512i zero23, int low, int high) {
    const __m512i least = sset1(low), most = sset1(high);
    const __m512i a = smin(smax(sadds(rounded(x[0], x[1]), zero01), least), most);
    const __m512i b = smin(smax(sadds(rounded(x[2], x[3]), zero23), least), most);
    store_bytes(p, a, b);
  }
  VISQ_INLINE T pick(const float* table, const uint8_t* at) { return _mm512_i32gather_ps(ibytes(at), table, 4); }
  VISQ_INLINE T times_pow2(T p, T n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }
  VISQ_INLINE T neg(T x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
  VISQ_INLINE T sqrt(T x) { return _mm512_sqrt_ps(x); }
  VISQ_INLINE T to_float(I x) { return _mm512_cvtepi32_ps(x); }
  VISQ_INLINE I izero() { return _mm512_setzero_si512(); }
  VISQ_INLINE I iset1(int32_t x) { return _mm512_set1_epi32(x); }
  VISQ_INLINE I iload(const int32_t* p) { return weights(p); }
  VISQ_INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  VISQ_INLINE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  VISQ_INLINE I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  VISQ_INLINE I imul_low(I a, I b) { return _mm512_madd_epi16(a, b); }
  VISQ_INLINE I weights(const void* p) { return _mm512_loadu_si512(p); }
  VISQ_INLINE I broadcast(const void* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  VISQ_INLINE S sload(const void* p) { return weights(p); }
  VISQ_INLINE void sstore(void* p, S x) { _mm512_storeu_si512(p, x); }
  VISQ_INLINE void store_packed(void* p, S a, S b) { sstore(p, _mm512_packs_epi16(a, b)); }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const S x = sload(p), zero = _mm512_setzero_si512();
    a = _mm512_unpacklo_epi8(zero, x), b = _mm512_unpackhi_epi8(zero, x);
  }
  VISQ_INLINE S spair(const int16_t* p) { return broadcast(p); }
  VISQ_INLINE S sset1(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
  // Values below INT32_MIN convert to INT32_MIN (that is what the instruction does). Values above INT32_MAX are clamped
  // first, because they would also become INT32_MIN.
  VISQ_INLINE __m512i whole(T x) { return _mm512_cvtps_epi32(_mm512_min_ps(x, _mm512_set1_ps(32767.0f))); }
  VISQ_INLINE S both(T x) {
    const __m512i packed = _mm512_packs_epi32(whole(x), whole(x));
    return _mm512_unpacklo_epi16(packed, packed);
  }
  VISQ_INLINE void both2(T x, T y, S& to_x, S& to_y) {
    const __m512i packed = _mm512_packs_epi32(whole(x), whole(y));
    to_x = _mm512_unpacklo_epi16(packed, packed), to_y = _mm512_unpackhi_epi16(packed, packed);
  }
  VISQ_INLINE void store_shorts(int16_t* p, T x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(whole(x)));
  }
  VISQ_INLINE S sadd(S a, S b) { return _mm512_add_epi16(a, b); }
  VISQ_INLINE S ssub(S a, S b) { return _mm512_sub_epi16(a, b); }
  VISQ_INLINE S sadds(S a, S b) { return _mm512_adds_epi16(a, b); }
  VISQ_INLINE S mulhi_u(S a, S b) { return _mm512_mulhi_epu16(a, b); }
  VISQ_INLINE S mulhi(S a, S b) { return _mm512_mulhi_epi16(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return _mm512_mullo_epi16(a, b); }
  VISQ_INLINE S mulhrs(S a, S b) { return _mm512_mulhrs_epi16(a, b); }
  VISQ_INLINE S sar6(S a) { return _mm512_srai_epi16(a, 6); }
  VISQ_INLINE S alternate(S a, S b) { return _mm512_mask_blend_epi16(0xaaaaaaaau, a, b); }
  VISQ_INLINE S sand(S a, S b) { return _mm512_and_si512(a, b); }
  VISQ_INLINE S smin(S a, S b) { return _mm512_min_epi16(a, b); }
  VISQ_INLINE S smax(S a, S b) { return _mm512_max_epi16(a, b); }
  VISQ_INLINE S smin_u(S a, S b) { return _mm512_min_epu16(a, b); }
  // A shift by elements is one instruction, a shift by a count in an xmm register two.
  using Count = __m512i;
  VISQ_INLINE Count count(int n) { return _mm512_set1_epi16(static_cast<int16_t>(n)); }
  VISQ_INLINE S shl(S a, Count n) { return _mm512_sllv_epi16(a, n); }
  VISQ_INLINE S shr(S a, Count n) { return _mm512_srlv_epi16(a, n); }
  VISQ_INLINE S shr_each(S a, S n) { return _mm512_srlv_epi16(a, n); }
  VISQ_INLINE S pick16(const int16_t* table, S at) {
    const __m512i even = _mm512_i32gather_epi32(_mm512_and_si512(at, _mm512_set1_epi32(0xffff)), table, 2);
    const __m512i odd = _mm512_i32gather_epi32(_mm512_srli_epi32(at, 16), table, 2);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, even, _mm512_slli_epi32(odd, 16));
  }
  // Replaces each x by values[how many of the ascending thresholds are not above x], for U vectors and without gathers.
  // search32: 31 thresholds and 32 values.
  template <int U>
  VISQ_INLINE void search32(const int16_t* thresholds, const int16_t* values, S* x) {
    const S t = sload(thresholds), v = sload(values);
    S at[U];
    for (int j = 0; j < U; ++j) at[j] = sset1(0);
    for (int half = 16; half; half /= 2)
      for (int j = 0; j < U; ++j)
        at[j] = advance(at[j], half, _mm512_permutexvar_epi16(_mm512_add_epi16(at[j], sset1(half - 1)), t), x[j]);
    for (int j = 0; j < U; ++j) x[j] = _mm512_permutexvar_epi16(at[j], v);
  }
  // search256: 255 thresholds and 256 values in groups of four, [k][64] being number k of each group. A binary search
  // over the groups' last thresholds finds the group.
  template <int U>
  VISQ_INLINE void search256(const int16_t* thresholds, const int16_t* values, S* x) {
    S at[U], found[U];
    for (int j = 0; j < U; ++j) at[j] = sset1(0);
    for (int half = 32; half; half /= 2)
      for (int j = 0; j < U; ++j)
        at[j] = advance(at[j], half, pick64(thresholds + 3 * 64, _mm512_add_epi16(at[j], sset1(half - 1))), x[j]);
    for (int j = 0; j < U; ++j) found[j] = pick64(values, at[j]);
    for (int k = 0; k < 3; ++k)
      for (int j = 0; j < U; ++j) {
        const __mmask32 beyond = _mm512_cmpge_epi16_mask(x[j], pick64(thresholds + k * 64, at[j]));
        found[j] = _mm512_mask_mov_epi16(found[j], beyond, pick64(values + (k + 1) * 64, at[j]));
      }
    for (int j = 0; j < U; ++j) x[j] = found[j];
  }
  VISQ_INLINE S advance(S at, int half, S probe, S x) {
    return _mm512_mask_add_epi16(at, _mm512_cmpge_epi16_mask(x, probe), at, sset1(half));
  }
  VISQ_INLINE S pick64(const int16_t* table, S at) {
    return _mm512_permutex2var_epi16(sload(table), at, sload(table + 32));
  }
};

}  // namespace visq::VISQ_LEVEL
