// One vocabulary of vector operations, written three times; every kernel is written once over it.
//
// Partial loads fill the missing lanes with zeros. min and max return the second argument when either is NaN (as the
// x86 instructions do), so clamp(x) = max(lo, min(hi, x)) propagates NaN. rint is round half to even.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define VISQ_INLINE static inline __attribute__((always_inline))

namespace visq {

// 2^x = 2^n 2^r with n = rint(x), |r| <= 1/2 and 2^r = 1 + r P(r), P minimax in relative error (1.6e-7 with rounding).
// The constant is exactly 1, so exp(0) is exactly 1.
constexpr int kExp2Terms = 5;
constexpr float kExp2[kExp2Terms] = {1.326472731307149e-3f, 9.671512991189957e-3f, 5.550733581185341e-2f,
                                     2.4022242426872253e-1f, 6.931470036506653e-1f};
constexpr float kLog2e = 1.44269504088896341f;

// Several vectors at once, in lockstep: one exponential alone is a long chain of dependent instructions.
template <class V, int U>
VISQ_INLINE void exp2_fraction(const typename V::T* r, typename V::T* p) {
  for (int j = 0; j < U; ++j) p[j] = V::set1(kExp2[0]);
  for (int i = 1; i < kExp2Terms; ++i)
    for (int j = 0; j < U; ++j) p[j] = V::fma(p[j], r[j], V::set1(kExp2[i]));
  for (int j = 0; j < U; ++j) p[j] = V::fma(p[j], r[j], V::set1(1.0f));
}

struct VecScalar {
  using T = float;
  static constexpr int W = 1;
  VISQ_INLINE T zero() { return 0.0f; }
  VISQ_INLINE T set1(float x) { return x; }
  VISQ_INLINE T load(const float* p) { return *p; }
  VISQ_INLINE T load_n(const float* p, int) { return *p; }
  VISQ_INLINE void store(float* p, T v) { *p = v; }
  VISQ_INLINE void store_n(float* p, T v, int) { *p = v; }
  VISQ_INLINE T add(T a, T b) { return a + b; }
  VISQ_INLINE T sub(T a, T b) { return a - b; }
  VISQ_INLINE T mul(T a, T b) { return a * b; }
  VISQ_INLINE T div(T a, T b) { return a / b; }
  VISQ_INLINE T fma(T a, T b, T c) { return a * b + c; }
  VISQ_INLINE T fnma(T a, T b, T c) { return c - a * b; }
  VISQ_INLINE T min(T a, T b) { return a < b ? a : b; }
  VISQ_INLINE T max(T a, T b) { return a > b ? a : b; }
  VISQ_INLINE T abs(T a) { return __builtin_fabsf(a); }
  VISQ_INLINE T rint(T a) { return __builtin_rintf(a); }
  template <int U>
  VISQ_INLINE void exp2(T* x) {
    for (int j = 0; j < U; ++j) x[j] = __builtin_exp2f(x[j]);
  }
  VISQ_INLINE float hsum(T a) { return a; }
  // out[i] += hsum(a[i]), i < 4
  VISQ_INLINE void add_hsum4(const T* a, float* out) {
    for (int i = 0; i < 4; ++i) out[i] += a[i];
  }
  // v where lo <= x <= hi, else 0.
  VISQ_INLINE T keep_within(T v, T x, T lo, T hi) { return x >= lo && x <= hi ? v : 0.0f; }
  // v, or x where x is NaN.
  VISQ_INLINE T nan_from(T v, T x) { return x == x ? v : x; }
  // Value of a sorted table of `count` thresholds at x: values[how many thresholds are strictly below x].
  struct Lookup {
    const float *values, *thresholds;
    int count;
    T operator()(T x) const {
      int at = 0;
      for (int half = 128; half; half /= 2)
        if (at + half <= count && thresholds[at + half - 1] < x) at += half;
      return values[at];
    }
  };
};

#if defined(__AVX2__)
struct VecAvx2 {
  using T = __m256;
  static constexpr int W = 8;
  VISQ_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  VISQ_INLINE T zero() { return _mm256_setzero_ps(); }
  VISQ_INLINE T set1(float x) { return _mm256_set1_ps(x); }
  VISQ_INLINE T load(const float* p) { return _mm256_loadu_ps(p); }
  VISQ_INLINE T load_n(const float* p, int n) { return n == W ? load(p) : _mm256_maskload_ps(p, mask(n)); }
  VISQ_INLINE void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  VISQ_INLINE void store_n(float* p, T v, int n) { n == W ? store(p, v) : _mm256_maskstore_ps(p, mask(n), v); }
  VISQ_INLINE T add(T a, T b) { return _mm256_add_ps(a, b); }
  VISQ_INLINE T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  VISQ_INLINE T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  VISQ_INLINE T div(T a, T b) { return _mm256_div_ps(a, b); }
  VISQ_INLINE T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  VISQ_INLINE T fnma(T a, T b, T c) { return _mm256_fnmadd_ps(a, b, c); }
  VISQ_INLINE T min(T a, T b) { return _mm256_min_ps(a, b); }
  VISQ_INLINE T max(T a, T b) { return _mm256_max_ps(a, b); }
  VISQ_INLINE T abs(T a) { return _mm256_andnot_ps(set1(-0.0f), a); }
  VISQ_INLINE T rint(T a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  VISQ_INLINE T pow2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  template <int U>
  VISQ_INLINE void exp2(T* x) {
    T n[U], r[U];
    for (int j = 0; j < U; ++j) x[j] = max(set1(-152.0f), min(set1(130.0f), x[j]));
    for (int j = 0; j < U; ++j) n[j] = rint(x[j]);
    for (int j = 0; j < U; ++j) r[j] = sub(x[j], n[j]);
    exp2_fraction<VecAvx2, U>(r, x);
    for (int j = 0; j < U; ++j) {
      // In two factors, so that subnormal and infinite results come out right.
      const __m256i whole = _mm256_cvtps_epi32(n[j]), half = _mm256_srai_epi32(whole, 1);
      x[j] = mul(mul(x[j], pow2(half)), pow2(_mm256_sub_epi32(whole, half)));
    }
  }
  VISQ_INLINE __m128 fold(T a) { return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)); }
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
    return _mm256_and_ps(v, _mm256_and_ps(_mm256_cmp_ps(x, lo, _CMP_GE_OQ), _mm256_cmp_ps(x, hi, _CMP_LE_OQ)));
  }
  VISQ_INLINE T nan_from(T v, T x) { return _mm256_blendv_ps(v, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
  struct Lookup {
    const float *values, *thresholds;
    int count;
    T operator()(T x) const {
      __m256i at = _mm256_setzero_si256();
      const __m256i last = _mm256_set1_epi32(count);
      for (int half = 128; half; half /= 2) {
        if (half > count) continue;
        const __m256i next = _mm256_add_epi32(at, _mm256_set1_epi32(half));
        const __m256i outside = _mm256_cmpgt_epi32(next, last);
        const __m256i probe = _mm256_sub_epi32(_mm256_min_epi32(next, last), _mm256_set1_epi32(1));
        const T below = _mm256_cmp_ps(_mm256_i32gather_ps(thresholds, probe, 4), x, _CMP_LT_OQ);
        at = _mm256_blendv_epi8(at, next, _mm256_andnot_si256(outside, _mm256_castps_si256(below)));
      }
      return _mm256_i32gather_ps(values, at, 4);
    }
  };
};
#endif

#if defined(__AVX512F__)
struct VecAvx512 {
  using T = __m512;
  static constexpr int W = 16;
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
  VISQ_INLINE T abs(T a) { return _mm512_abs_ps(a); }
  VISQ_INLINE T rint(T a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  template <int U>
  VISQ_INLINE void exp2(T* x) {
    T n[U], r[U];
    for (int j = 0; j < U; ++j) x[j] = max(set1(-152.0f), x[j]);  // for -inf; large x overflow by themselves
    for (int j = 0; j < U; ++j) n[j] = rint(x[j]);
    for (int j = 0; j < U; ++j) r[j] = sub(x[j], n[j]);
    exp2_fraction<VecAvx512, U>(r, x);
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
  // Gathers are slow on many machines; permutes are not. Thresholds lie in blocks of 16: a binary search over the last
  // one of each block finds the block, a second one inside it the position.
  struct Lookup {
    T values[16], thresholds[16], last_of_block;
    int pairs;  // of blocks in use

    // Inlined, like all of V: a copy of its own could be shared with code compiled for another machine.
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
};
#endif

}  // namespace visq
