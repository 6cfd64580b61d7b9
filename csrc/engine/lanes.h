// What the engine needs of a vector type beyond csrc/vec.h: bytes, 32-bit sums of products, and for the scan 16-bit
// lanes, two states of each of W channels in a register.
#pragma once
#include "../vec.h"

namespace visq::engine {

template <class V>
struct Lanes;

template <>
struct Lanes<VecScalar> {
  using T = float;
  using I = int32_t;
  static constexpr bool kSearches = false;
  static constexpr int kStep = 2;
  VISQ_INLINE T bytes(const uint8_t* p) { return *p; }
  VISQ_INLINE void to_bytes(uint8_t* p, T x) { *p = static_cast<uint8_t>(x); }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) {
    for (int j = 0; j < 4; ++j) to_bytes(p + j, x[j]);
  }
  VISQ_INLINE T pick(const float* table, const uint8_t* at) { return table[*at]; }
  // p 2^n, a normal number, where the low bits of `n` hold n.
  VISQ_INLINE T times_pow2(T p, T n) {
    uint32_t bits, exponent;
    __builtin_memcpy(&bits, &p, 4), __builtin_memcpy(&exponent, &n, 4);
    bits += exponent << 23;
    __builtin_memcpy(&p, &bits, 4);
    return p;
  }
  VISQ_INLINE T neg(T x) { return -x; }
  VISQ_INLINE T sqrt(T x) { return __builtin_sqrtf(x); }
  VISQ_INLINE T to_float(I x) { return static_cast<float>(x); }
  VISQ_INLINE I izero() { return 0; }
  VISQ_INLINE I iset1(int32_t x) { return x; }
  VISQ_INLINE I iload(const int32_t* p) { return *p; }
  VISQ_INLINE I ibytes(const uint8_t* p) { return *p; }
  VISQ_INLINE I iadd(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
  VISQ_INLINE I isub(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
  VISQ_INLINE I imul(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }
  // Products of 16-bit values in the low halves; the high halves of `a` are zero.
  VISQ_INLINE I imul_low(I a, I b) { return static_cast<int16_t>(a) * static_cast<int16_t>(b); }
  // Sums of products: kStep weights of each of W outputs by the same kStep values.
  VISQ_INLINE I weights(const void* p) { return iload_raw(p); }
  VISQ_INLINE I broadcast(const void* p) { return iload_raw(p); }
  VISQ_INLINE I iload_raw(const void* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return x;
  }
  VISQ_INLINE I dot(I sum, I w, I x) {
    return iadd(sum, iadd(static_cast<int16_t>(w) * static_cast<int16_t>(x), (w >> 16) * (x >> 16)));
  }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) { *to = *from; }
  // Two steps of a sum, of four bytes each, by weights of 4 bits: a byte of `packed` holds one of both steps.
  struct Pair {
    I first, second;
  };
  VISQ_INLINE Pair nibbles(I packed) { return {packed, packed >> 4}; }
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    for (int i = 0; i < 32; i += 8) {
      const auto weight = [i](I pair) { return ((pair >> i & 15) ^ 8) - 8; };
      sum += weight(w.first) * (x.first >> i & 255) + weight(w.second) * (x.second >> i & 255);
    }
    return sum;
  }

  struct S {
    int16_t v[2];
  };
  template <class F>
  VISQ_INLINE S each(F f) {
    return {{static_cast<int16_t>(f(0)), static_cast<int16_t>(f(1))}};
  }
  VISQ_INLINE uint16_t u(int16_t x) { return static_cast<uint16_t>(x); }
  VISQ_INLINE S sload(const void* p) {
    S x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  VISQ_INLINE void sstore(void* p, S x) { __builtin_memcpy(p, &x, sizeof x); }
  // Two registers in the bytes of one: saturated; read back, a byte is in the high half of its 16 bits.
  VISQ_INLINE void store_packed(void* p, S a, S b) {
    int8_t bytes[4];
    for (int i = 0; i < 4; ++i) {
      const int16_t x = i < 2 ? a.v[i] : b.v[i - 2];
      bytes[i] = static_cast<int8_t>(x < -128 ? -128 : x > 127 ? 127 : x);
    }
    __builtin_memcpy(p, bytes, sizeof bytes);
  }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    int8_t bytes[4];
    __builtin_memcpy(bytes, p, sizeof bytes);
    a = each([&](int i) { return bytes[i] * 256; }), b = each([&](int i) { return bytes[i + 2] * 256; });
  }
  // Four vectors: clamp(rint(x) + zero, low, high) of whole numbers within 16 bits, 0 <= low, high <= 255. NaN is high.
  // Zeros are in the order of Engine::pack_zeros.
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, S zero01, S zero23, int low, int high) {
    for (int j = 0; j < 4; ++j) {
      const T most = x[j] < 32767.0f ? x[j] : 32767.0f;
      const int zero = (j < 2 ? zero01 : zero23).v[j % 2];
      const int code = static_cast<int>(__builtin_rintf(most > -32768.0f ? most : -32768.0f)) + zero;
      p[j] = static_cast<uint8_t>(code < low ? low : code > high ? high : code);
    }
  }
  VISQ_INLINE S spair(const int16_t* p) { return sload(p); }
  VISQ_INLINE S sset1(int x) { return {{static_cast<int16_t>(x), static_cast<int16_t>(x)}}; }
  // Rounded to 16 bits, saturated, each into both states of its channel; NaN is 32767.
  VISQ_INLINE S both(T x) {
    const T most = x < 32767.0f ? x : 32767.0f;
    return sset1(static_cast<int>(__builtin_rintf(most > -32768.0f ? most : -32768.0f)));
  }
  VISQ_INLINE void both(T x, T y, S& to_x, S& to_y) { to_x = both(x), to_y = both(y); }
  // W of them, rounded and saturated.
  VISQ_INLINE void store_shorts(int16_t* p, T x) { *p = both(x).v[0]; }
  VISQ_INLINE S add(S a, S b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
  VISQ_INLINE S adds(S a, S b) {
    return each([&](int i) {
      const int sum = a.v[i] + b.v[i];
      return sum < -32768 ? -32768 : sum > 32767 ? 32767 : sum;
    });
  }
  VISQ_INLINE S sub(S a, S b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
  VISQ_INLINE S mulhi_u(S a, S b) {
    return each([&](int i) { return (static_cast<uint32_t>(u(a.v[i])) * u(b.v[i])) >> 16; });
  }
  VISQ_INLINE S mulhi(S a, S b) { return each([&](int i) { return (a.v[i] * b.v[i]) >> 16; }); }
  VISQ_INLINE S mullo(S a, S b) { return each([&](int i) { return static_cast<uint32_t>(u(a.v[i])) * u(b.v[i]); }); }
  VISQ_INLINE S mulhrs(S a, S b) { return each([&](int i) { return (a.v[i] * b.v[i] + (1 << 14)) >> 15; }); }
  VISQ_INLINE S sar6(S a) { return each([&](int i) { return a.v[i] >> 6; }); }
  VISQ_INLINE S and_(S a, S b) { return each([&](int i) { return a.v[i] & b.v[i]; }); }
  VISQ_INLINE S min(S a, S b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
  VISQ_INLINE S max(S a, S b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
  VISQ_INLINE S min_u(S a, S b) { return each([&](int i) { return u(a.v[i]) < u(b.v[i]) ? a.v[i] : b.v[i]; }); }
  // Shifts by one count for all lanes; a count past the width shifts everything out.
  using Count = int;
  VISQ_INLINE Count count(int n) { return n; }
  VISQ_INLINE S shl(S a, Count n) { return each([&](int i) { return n > 15 ? 0 : u(a.v[i]) << n; }); }
  VISQ_INLINE S shr(S a, Count n) { return each([&](int i) { return n > 15 ? 0 : u(a.v[i]) >> n; }); }
  VISQ_INLINE S shr_each(S a, S n) { return each([&](int i) { return u(n.v[i]) > 15 ? 0 : u(a.v[i]) >> n.v[i]; }); }
  // The high half of (high : low) << n, 0 <= n <= 15.
  VISQ_INLINE S join(S high, S low, Count n, Count) {
    return each([&](int i) {
      return (((static_cast<uint32_t>(u(high.v[i])) << 16) | u(low.v[i])) << n) >> 16;
    });
  }
  VISQ_INLINE S pick16(const int16_t* table, S at) { return each([&](int i) { return table[u(at.v[i])]; }); }
  VISQ_INLINE I dot16(I sum, S a, S b) {
    return iadd(sum, iadd(a.v[0] * b.v[0], a.v[1] * b.v[1]));  // wraps as the instruction does
  }
};

#if defined(__AVX2__)
template <>
struct Lanes<VecAvx2> {
  using T = __m256;
  using I = __m256i;
  static constexpr bool kSearches = false;
  static constexpr int kStep = 2;
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
  // Packing goes by halves: its 32-bit pieces are out of order.
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
    const __m256i a = min(max(adds(rounded(x[0], x[1]), zero01), least), most);
    const __m256i b = min(max(adds(rounded(x[2], x[3]), zero23), least), most);
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
  struct Pair {
    I first, second;
  };
  VISQ_INLINE Pair nibbles(I packed) {
    const I low = _mm256_set1_epi8(15);
    const I values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
    return {_mm256_shuffle_epi8(values, _mm256_and_si256(packed, low)),
            _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low))};
  }
  // Four products of a byte and 4 bits fit into 16.
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const I products = _mm256_add_epi16(_mm256_maddubs_epi16(x.first, w.first),
                                        _mm256_maddubs_epi16(x.second, w.second));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }

  using S = __m256i;
  VISQ_INLINE S sload(const void* p) { return weights(p); }
  VISQ_INLINE void sstore(void* p, S x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  VISQ_INLINE void store_packed(void* p, S a, S b) { sstore(p, _mm256_packs_epi16(a, b)); }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const S x = sload(p), zero = _mm256_setzero_si256();
    a = _mm256_unpacklo_epi8(zero, x), b = _mm256_unpackhi_epi8(zero, x);
  }
  VISQ_INLINE S spair(const int16_t* p) { return broadcast(p); }
  VISQ_INLINE S sset1(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
  // What lies below 32 bits converts to the least number, what lies above is kept from it.
  VISQ_INLINE __m256i whole(T x) { return _mm256_cvtps_epi32(_mm256_min_ps(x, _mm256_set1_ps(32767.0f))); }
  VISQ_INLINE S both(T x) {
    const __m256i packed = _mm256_packs_epi32(whole(x), whole(x));
    return _mm256_unpacklo_epi16(packed, packed);
  }
  VISQ_INLINE void both(T x, T y, S& to_x, S& to_y) {
    const __m256i packed = _mm256_packs_epi32(whole(x), whole(y));
    to_x = _mm256_unpacklo_epi16(packed, packed), to_y = _mm256_unpackhi_epi16(packed, packed);
  }
  VISQ_INLINE void store_shorts(int16_t* p, T x) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole(x), whole(x)), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  VISQ_INLINE S add(S a, S b) { return _mm256_add_epi16(a, b); }
  VISQ_INLINE S sub(S a, S b) { return _mm256_sub_epi16(a, b); }
  VISQ_INLINE S adds(S a, S b) { return _mm256_adds_epi16(a, b); }
  VISQ_INLINE S mulhi_u(S a, S b) { return _mm256_mulhi_epu16(a, b); }
  VISQ_INLINE S mulhi(S a, S b) { return _mm256_mulhi_epi16(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return _mm256_mullo_epi16(a, b); }
  VISQ_INLINE S mulhrs(S a, S b) { return _mm256_mulhrs_epi16(a, b); }
  VISQ_INLINE S sar6(S a) { return _mm256_srai_epi16(a, 6); }
  VISQ_INLINE S and_(S a, S b) { return _mm256_and_si256(a, b); }
  VISQ_INLINE S min(S a, S b) { return _mm256_min_epi16(a, b); }
  VISQ_INLINE S max(S a, S b) { return _mm256_max_epi16(a, b); }
  VISQ_INLINE S min_u(S a, S b) { return _mm256_min_epu16(a, b); }
  using Count = __m128i;
  VISQ_INLINE Count count(int n) { return _mm_cvtsi32_si128(n); }
  VISQ_INLINE S shl(S a, Count n) { return _mm256_sll_epi16(a, n); }
  VISQ_INLINE S shr(S a, Count n) { return _mm256_srl_epi16(a, n); }
  // There is no 16-bit shift by lanes: both halves of a 32-bit lane by themselves.
  VISQ_INLINE S shr_each(S a, S n) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i even = _mm256_srlv_epi32(_mm256_and_si256(a, low), _mm256_and_si256(n, low));
    const __m256i odd = _mm256_srlv_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(n, 16));
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  }
  VISQ_INLINE S join(S high, S low, Count n, Count rest) {
    return _mm256_or_si256(_mm256_sll_epi16(high, n), _mm256_srl_epi16(low, rest));
  }
  // Reads 4 bytes at each position: tables end in 2 bytes of padding.
  VISQ_INLINE S pick16(const int16_t* table, S at) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const int* base = reinterpret_cast<const int*>(table);
    const __m256i even = _mm256_i32gather_epi32(base, _mm256_and_si256(at, low), 2);
    const __m256i odd = _mm256_i32gather_epi32(base, _mm256_srli_epi32(at, 16), 2);
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  }
  VISQ_INLINE I dot16(I sum, S a, S b) { return dot(sum, a, b); }
};
#endif

#if defined(__AVX512F__)
// The VNNI variant is a type of its own, so that no template instance is shared with code for machines without it.
struct VecVnni : VecAvx512 {};

struct Lanes512 {
  using T = __m512;
  using I = __m512i;
  static constexpr bool kSearches = true;
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
  // Packing goes by quarters: its 32-bit pieces are out of order.
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
    const __m512i a = min(max(adds(rounded(x[0], x[1]), zero01), least), most);
    const __m512i b = min(max(adds(rounded(x[2], x[3]), zero23), least), most);
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

  using S = __m512i;
  VISQ_INLINE S sload(const void* p) { return weights(p); }
  VISQ_INLINE void sstore(void* p, S x) { _mm512_storeu_si512(p, x); }
  VISQ_INLINE void store_packed(void* p, S a, S b) { sstore(p, _mm512_packs_epi16(a, b)); }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const S x = sload(p), zero = _mm512_setzero_si512();
    a = _mm512_unpacklo_epi8(zero, x), b = _mm512_unpackhi_epi8(zero, x);
  }
  VISQ_INLINE S spair(const int16_t* p) { return broadcast(p); }
  VISQ_INLINE S sset1(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
  // What lies below 32 bits converts to the least number, what lies above is kept from it.
  VISQ_INLINE __m512i whole(T x) { return _mm512_cvtps_epi32(_mm512_min_ps(x, _mm512_set1_ps(32767.0f))); }
  VISQ_INLINE S both(T x) {
    const __m512i packed = _mm512_packs_epi32(whole(x), whole(x));
    return _mm512_unpacklo_epi16(packed, packed);
  }
  VISQ_INLINE void both(T x, T y, S& to_x, S& to_y) {
    const __m512i packed = _mm512_packs_epi32(whole(x), whole(y));
    to_x = _mm512_unpacklo_epi16(packed, packed), to_y = _mm512_unpackhi_epi16(packed, packed);
  }
  VISQ_INLINE void store_shorts(int16_t* p, T x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(whole(x)));
  }
  VISQ_INLINE S add(S a, S b) { return _mm512_add_epi16(a, b); }
  VISQ_INLINE S sub(S a, S b) { return _mm512_sub_epi16(a, b); }
  VISQ_INLINE S adds(S a, S b) { return _mm512_adds_epi16(a, b); }
  VISQ_INLINE S mulhi_u(S a, S b) { return _mm512_mulhi_epu16(a, b); }
  VISQ_INLINE S mulhi(S a, S b) { return _mm512_mulhi_epi16(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return _mm512_mullo_epi16(a, b); }
  VISQ_INLINE S mulhrs(S a, S b) { return _mm512_mulhrs_epi16(a, b); }
  VISQ_INLINE S sar6(S a) { return _mm512_srai_epi16(a, 6); }
  VISQ_INLINE S and_(S a, S b) { return _mm512_and_si512(a, b); }
  VISQ_INLINE S min(S a, S b) { return _mm512_min_epi16(a, b); }
  VISQ_INLINE S max(S a, S b) { return _mm512_max_epi16(a, b); }
  VISQ_INLINE S min_u(S a, S b) { return _mm512_min_epu16(a, b); }
  // Shifts by lanes are one instruction, those by a count in an xmm register two.
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
  // values[how many ascending thresholds are not above x] of U registers, in place: by permutes, where gathers are slow.
  // 31 thresholds and 32 values.
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
  // 255 and 256, in groups of four: [k][64] has number k of each. The last threshold of each finds the group.
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

template <>
struct Lanes<VecAvx512> : Lanes512 {
  static constexpr int kStep = 2;
  VISQ_INLINE I dot(I sum, I w, I x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
  struct Pair {
    I first, second;
  };
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
  VISQ_INLINE S join(S high, S low, Count n, Count rest) {
    return _mm512_or_si512(_mm512_sllv_epi16(high, n), _mm512_srlv_epi16(low, rest));
  }
};
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
template <>
struct Lanes<VecVnni> : Lanes512 {
  static constexpr int kStep = 4;
  VISQ_INLINE I dot(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, x, w); }
  // Weights of 4 bits of the first or second of two steps of a sum, times 16: an instruction less than signs would take.
  template <bool kSecond>
  VISQ_INLINE I nibbles(I packed) {
    return _mm512_and_si512(kSecond ? packed : _mm512_slli_epi16(packed, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
  }
  VISQ_INLINE I sixteenth(I x) { return _mm512_srai_epi32(x, 4); }
  // 64 bytes of each of four rows -> the four bytes of every column, 16 columns a vector.
  VISQ_INLINE void interleave(const uint8_t* const* rows, I* out) {
    // Unpacking goes by quarters of a vector: quarter q gets columns 4 q to 4 q + 3 of each 16 to begin with.
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    I row[4];
    for (int k = 0; k < 4; ++k) row[k] = _mm512_permutexvar_epi32(order, weights(rows[k]));
    const I low[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpacklo_epi8(row[2], row[3])};
    const I high[2] = {_mm512_unpackhi_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[2], row[3])};
    out[0] = _mm512_unpacklo_epi16(low[0], low[1]), out[1] = _mm512_unpackhi_epi16(low[0], low[1]);
    out[2] = _mm512_unpacklo_epi16(high[0], high[1]), out[3] = _mm512_unpackhi_epi16(high[0], high[1]);
  }
  VISQ_INLINE I dot16(I sum, S a, S b) { return _mm512_dpwssd_epi32(sum, a, b); }
  VISQ_INLINE S join(S high, S low, Count n, Count) { return _mm512_shldv_epi16(high, low, n); }
};
#endif

}  // namespace visq::engine
