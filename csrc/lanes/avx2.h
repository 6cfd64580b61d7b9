// AVX2 and FMA: 8 floats.
#pragma once
#include <immintrin.h>

#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct Avx2Types {
  using T = __m256;
  using I = __m256i;
  using S = __m256i;
};

struct Vector : Generic<Avx2Types> {
  // --- floats

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
    exp2_fraction<Vector, U>(r, x);
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

  // --- bytes and integers

  VISQ_INLINE I ibytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  VISQ_INLINE T bytes(const uint8_t* p) { return _mm256_cvtepi32_ps(ibytes(p)); }
  VISQ_INLINE void to_bytes(uint8_t* p, T x) {
    const __m256i whole = _mm256_cvttps_epi32(x);
    const __m128i shorts = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(shorts, shorts));
  }
  VISQ_INLINE __m256i shorts(T a, T b) {
    return _mm256_packs_epi32(_mm256_cvttps_epi32(a), _mm256_cvttps_epi32(b));
  }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) { store_bytes(p, shorts(x[0], x[1]), shorts(x[2], x[3])); }
  // Packing works within halves of a vector, so the 32-bit pieces must be put in order afterwards.
  VISQ_INLINE void store_bytes(uint8_t* p, __m256i a, __m256i b) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
  }
  VISQ_INLINE __m256i rounded(T a, T b) {
    const T most = _mm256_set1_ps(32767.0f);
    return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_min_ps(a, most)), _mm256_cvtps_epi32(_mm256_min_ps(b, most)));
  }
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, __m256i zero01, __m256i zero23, int low, int high) {
    const __m256i least = sset1(low), most = sset1(high);
    const __m256i a = smin(smax(sadds(rounded(x[0], x[1]), zero01), least), most);
    const __m256i b = smin(smax(sadds(rounded(x[2], x[3]), zero23), least), most);
    store_bytes(p, a, b);
  }
  VISQ_INLINE T pick(const float* table, const uint8_t* at) { return _mm256_i32gather_ps(table, ibytes(at), 4); }
  VISQ_INLINE T times_pow2(T p, T n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }
  VISQ_INLINE T neg(T x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }
  VISQ_INLINE T sqrt(T x) { return _mm256_sqrt_ps(x); }
  VISQ_INLINE T to_float(I x) { return _mm256_cvtepi32_ps(x); }
  VISQ_INLINE I izero() { return _mm256_setzero_si256(); }
  VISQ_INLINE I iset1(int32_t x) { return _mm256_set1_epi32(x); }
  VISQ_INLINE I iload(const int32_t* p) { return weights(p); }
  VISQ_INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
  VISQ_INLINE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
  VISQ_INLINE I imul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  VISQ_INLINE I imul_low(I a, I b) { return _mm256_madd_epi16(a, b); }
  VISQ_INLINE I weights(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  VISQ_INLINE I broadcast(const void* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  VISQ_INLINE I dot(I sum, I w, I x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
  VISQ_INLINE Pair nibbles(I packed) {
    const I low = _mm256_set1_epi8(15);
    const I values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
    return {_mm256_shuffle_epi8(values, _mm256_and_si256(packed, low)),
            _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low))};
  }
  // The sum of four products of a byte and 4 bits fits into 16 bits.
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const I products = _mm256_add_epi16(_mm256_maddubs_epi16(x.first, w.first),
                                        _mm256_maddubs_epi16(x.second, w.second));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }

  VISQ_INLINE S sload(const void* p) { return weights(p); }
  VISQ_INLINE void sstore(void* p, S x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  VISQ_INLINE void store_packed(void* p, S a, S b) { sstore(p, _mm256_packs_epi16(a, b)); }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const S x = sload(p), zero = _mm256_setzero_si256();
    a = _mm256_unpacklo_epi8(zero, x), b = _mm256_unpackhi_epi8(zero, x);
  }
  VISQ_INLINE S spair(const int16_t* p) { return broadcast(p); }
  VISQ_INLINE S sset1(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
  // Values below INT32_MIN convert to INT32_MIN (that is what the instruction does). Values above INT32_MAX are clamped
  // first, because they would also become INT32_MIN.
  VISQ_INLINE __m256i whole(T x) { return _mm256_cvtps_epi32(_mm256_min_ps(x, _mm256_set1_ps(32767.0f))); }
  VISQ_INLINE S both(T x) {
    const __m256i packed = _mm256_packs_epi32(whole(x), whole(x));
    return _mm256_unpacklo_epi16(packed, packed);
  }
  VISQ_INLINE void both2(T x, T y, S& to_x, S& to_y) {
    const __m256i packed = _mm256_packs_epi32(whole(x), whole(y));
    to_x = _mm256_unpacklo_epi16(packed, packed), to_y = _mm256_unpackhi_epi16(packed, packed);
  }
  VISQ_INLINE void store_shorts(int16_t* p, T x) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole(x), whole(x)), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  VISQ_INLINE S sadd(S a, S b) { return _mm256_add_epi16(a, b); }
  VISQ_INLINE S ssub(S a, S b) { return _mm256_sub_epi16(a, b); }
  VISQ_INLINE S sadds(S a, S b) { return _mm256_adds_epi16(a, b); }
  VISQ_INLINE S mulhi_u(S a, S b) { return _mm256_mulhi_epu16(a, b); }
  VISQ_INLINE S mulhi(S a, S b) { return _mm256_mulhi_epi16(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return _mm256_mullo_epi16(a, b); }
  VISQ_INLINE S mulhrs(S a, S b) { return _mm256_mulhrs_epi16(a, b); }
  VISQ_INLINE S sar6(S a) { return _mm256_srai_epi16(a, 6); }
  VISQ_INLINE S alternate(S a, S b) { return _mm256_blend_epi16(a, b, 0xaa); }
  VISQ_INLINE S sand(S a, S b) { return _mm256_and_si256(a, b); }
  VISQ_INLINE S smin(S a, S b) { return _mm256_min_epi16(a, b); }
  VISQ_INLINE S smax(S a, S b) { return _mm256_max_epi16(a, b); }
  VISQ_INLINE S smin_u(S a, S b) { return _mm256_min_epu16(a, b); }
  using Count = __m128i;
  VISQ_INLINE Count count(int n) { return _mm_cvtsi32_si128(n); }
  VISQ_INLINE S shl(S a, Count n) { return _mm256_sll_epi16(a, n); }
  VISQ_INLINE S shr(S a, Count n) { return _mm256_srl_epi16(a, n); }
  // AVX2 has no 16-bit shift by elements, so each half of a 32-bit element is shifted by itself.
  VISQ_INLINE S shr_each(S a, S n) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i even = _mm256_srlv_epi32(_mm256_and_si256(a, low), _mm256_and_si256(n, low));
    const __m256i odd = _mm256_srlv_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(n, 16));
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  }
  VISQ_INLINE S funnel(S high, S low, Count n, Count rest) {
    return _mm256_or_si256(_mm256_sll_epi16(high, n), _mm256_srl_epi16(low, rest));
  }
  // The gather reads 4 bytes for each 2-byte entry.
  VISQ_INLINE S pick16(const int16_t* table, S at) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const int* base = reinterpret_cast<const int*>(table);
    const __m256i even = _mm256_i32gather_epi32(base, _mm256_and_si256(at, low), 2);
    const __m256i odd = _mm256_i32gather_epi32(base, _mm256_srli_epi32(at, 16), 2);
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  }
  VISQ_INLINE I dot16(I sum, S a, S b) { return dot(sum, a, b); }
};

}  // namespace visq::VISQ_LEVEL
