// Every operation the kernels use, in plain C++, for vectors of any width. An instruction set derives from Generic and
// overrides what it has an instruction for (docs/add-an-isa.md).
//
// The vectors of a level:
//   T  W floats
//   I  W 32-bit integers
//   S  2 W 16-bit integers. The scans keep two states of each of W channels there: elements 2 c and 2 c + 1.
// All three are trivially copyable and hold their elements in order of memory. Unless a comment says otherwise, a
// function works element by element, and integers wrap.
#pragma once
#include "lanes/common.h"

namespace visq::VISQ_LEVEL {

// The elements of a vector.
template <class E, class X>
struct Parts {
  E element[sizeof(X) / sizeof(E)];
  VISQ_INLINE Parts of(const X& x) {
    Parts parts;
    __builtin_memcpy(parts.element, &x, sizeof x);
    return parts;
  }
  __attribute__((always_inline)) E operator[](int i) const { return element[i]; }
};

// `Types` has the vectors T, I and S.
template <class Types>
struct Generic {
  using T = typename Types::T;
  using I = typename Types::I;
  using S = typename Types::S;
  static constexpr int W = sizeof(T) / sizeof(float);
  static_assert(sizeof(I) == sizeof(T) && sizeof(S) == sizeof(T));

  // Elements of one product of `dot`: 2 shorts, or 4 bytes (then a level has what avx512vnni.h has beside `dot`).
  static constexpr int kStep = 2;
  // What `dot` takes from each byte of a row: linear layers add it again, times the sum of an output's weights.
  static constexpr int kOffset = 0;
  // Whether the level has search32 and search256 (avx512.h), which find the values of a table without a gather.
  static constexpr bool kSearches = false;
  // Whether `exp2` of the engine moves additions to the units of products. Needs `within` and a fused `fma` (avx512_base.h).
  static constexpr bool kSpreads = false;

  // --- helpers of the fallbacks

  VISQ_INLINE Parts<float, T> floats(const T& x) { return Parts<float, T>::of(x); }
  VISQ_INLINE Parts<int32_t, I> ints(const I& x) { return Parts<int32_t, I>::of(x); }
  VISQ_INLINE Parts<int16_t, S> shorts(const S& x) { return Parts<int16_t, S>::of(x); }
  template <class E, class X>
  VISQ_INLINE Parts<E, X> parts(const X& x) {
    return Parts<E, X>::of(x);
  }

  // The vector of elements f(0), f(1), ...
  template <class F>
  VISQ_INLINE T make_floats(F f) {
    float element[W];
    for (int i = 0; i < W; ++i) element[i] = f(i);
    T x;
    __builtin_memcpy(&x, element, sizeof x);
    return x;
  }
  template <class F>
  VISQ_INLINE I make_ints(F f) {
    int32_t element[W];
    for (int i = 0; i < W; ++i) element[i] = static_cast<int32_t>(f(i));
    I x;
    __builtin_memcpy(&x, element, sizeof x);
    return x;
  }
  template <class F>
  VISQ_INLINE S make_shorts(F f) {
    int16_t element[2 * W];
    for (int i = 0; i < 2 * W; ++i) element[i] = static_cast<int16_t>(f(i));
    S x;
    __builtin_memcpy(&x, element, sizeof x);
    return x;
  }
  // The vector of f(a[i], b[i]).
  template <class F>
  VISQ_INLINE T each(T a, T b, F f) {
    const auto x = floats(a), y = floats(b);
    return make_floats([&](int i) { return f(x[i], y[i]); });
  }
  template <class F>
  VISQ_INLINE I each32(I a, I b, F f) {
    const auto x = ints(a), y = ints(b);
    return make_ints([&](int i) { return f(x[i], y[i]); });
  }
  template <class F>
  VISQ_INLINE S each16(S a, S b, F f) {
    const auto x = shorts(a), y = shorts(b);
    return make_shorts([&](int i) { return f(x[i], y[i]); });
  }
  VISQ_INLINE uint32_t u32(int32_t x) { return static_cast<uint32_t>(x); }
  VISQ_INLINE uint16_t u16(int16_t x) { return static_cast<uint16_t>(x); }
  // Rounds half to even and saturates to 16 bits; NaN becomes 32767.
  VISQ_INLINE int rounded16(float x) {
    const float most = x < 32767.0f ? x : 32767.0f;
    return static_cast<int>(__builtin_rintf(most > -32768.0f ? most : -32768.0f));
  }

  // --- floats

  VISQ_INLINE T zero() { return set1(0.0f); }
  VISQ_INLINE T set1(float x) {
    return make_floats([&](int) { return x; });
  }
  VISQ_INLINE T load(const float* p) { return make_floats([&](int i) { return p[i]; }); }
  VISQ_INLINE void store(float* p, T x) { __builtin_memcpy(p, &x, sizeof x); }
  // The first n elements; the others are zero, or are not written.
  VISQ_INLINE T load_n(const float* p, int n) { return make_floats([&](int i) { return i < n ? p[i] : 0.0f; }); }
  VISQ_INLINE void store_n(float* p, T x, int n) { __builtin_memcpy(p, &x, n * sizeof(float)); }
  VISQ_INLINE T add(T a, T b) { return each(a, b, [](float x, float y) { return x + y; }); }
  VISQ_INLINE T sub(T a, T b) { return each(a, b, [](float x, float y) { return x - y; }); }
  VISQ_INLINE T mul(T a, T b) { return each(a, b, [](float x, float y) { return x * y; }); }
  VISQ_INLINE T div(T a, T b) { return each(a, b, [](float x, float y) { return x / y; }); }
  // a b + c and c - a b, with one rounding or two: only kernels of visq.ops use these.
  VISQ_INLINE T fma(T a, T b, T c) {
    const auto x = floats(a), y = floats(b), z = floats(c);
    return make_floats([&](int i) { return x[i] * y[i] + z[i]; });
  }
  VISQ_INLINE T fnma(T a, T b, T c) {
    const auto x = floats(a), y = floats(b), z = floats(c);
    return make_floats([&](int i) { return z[i] - x[i] * y[i]; });
  }
  // Return b where either is NaN, as x86 does: max(low, min(high, x)) keeps NaN, max(min(x, high), low) gives high.
  VISQ_INLINE T min(T a, T b) { return each(a, b, [](float x, float y) { return x < y ? x : y; }); }
  VISQ_INLINE T max(T a, T b) { return each(a, b, [](float x, float y) { return x > y ? x : y; }); }
  VISQ_INLINE T abs(T a) { return each(a, a, [](float x, float) { return __builtin_fabsf(x); }); }
  VISQ_INLINE T neg(T a) { return each(a, a, [](float x, float) { return -x; }); }
  VISQ_INLINE T sqrt(T a) { return each(a, a, [](float x, float) { return __builtin_sqrtf(x); }); }
  // Half to even.
  VISQ_INLINE T rint(T a) { return each(a, a, [](float x, float) { return __builtin_rintf(x); }); }
  // 2^x of U vectors, in place. Kernels of visq.ops only: the engine's is kernels/arithmetic.h.
  template <int U>
  VISQ_INLINE void exp2(T* x) {
    for (int j = 0; j < U; ++j) {
      const auto e = floats(x[j]);
      x[j] = make_floats([&](int i) { return __builtin_exp2f(e[i]); });
    }
  }
  // p 2^n, which must be a normal number. The low bits of `n` are the integer.
  VISQ_INLINE T times_pow2(T p, T n) {
    const auto x = parts<uint32_t>(p), y = parts<uint32_t>(n);
    return from_bits(make_ints([&](int i) { return x[i] + (y[i] << 23); }));
  }
  VISQ_INLINE T from_bits(I bits) {
    T x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
  }
  // The sum of all elements, in any order.
  VISQ_INLINE float hsum(T a) {
    const auto x = floats(a);
    float sum = x[0];
    for (int i = 1; i < W; ++i) sum += x[i];
    return sum;
  }
  // out[i] += hsum(a[i]), i < 4
  VISQ_INLINE void add_hsum4(const T* a, float* out) {
    for (int i = 0; i < 4; ++i) out[i] += hsum(a[i]);
  }
  // v where low <= x <= high, else 0.
  VISQ_INLINE T keep_within(T v, T x, T low, T high) {
    const auto a = floats(v), b = floats(x), c = floats(low), d = floats(high);
    return make_floats([&](int i) { return b[i] >= c[i] && b[i] <= d[i] ? a[i] : 0.0f; });
  }
  // v, or x where x is NaN.
  VISQ_INLINE T nan_from(T v, T x) {
    const auto a = floats(v), b = floats(x);
    return make_floats([&](int i) { return b[i] == b[i] ? a[i] : b[i]; });
  }
  // A sorted table: x becomes values[how many of the `count` thresholds are below x], 0 <= count <= 255.
  struct Lookup {
    const float *values, *thresholds;
    int count;
    __attribute__((always_inline)) T operator()(T x) const {
      const auto e = floats(x);
      return make_floats([&](int i) {
        int at = 0;
        for (int half = 128; half; half /= 2)
          if (at + half <= count && thresholds[at + half - 1] < e[i]) at += half;
        return values[at];
      });
    }
  };

  // --- bytes

  // W bytes as floats, or as integers.
  VISQ_INLINE T bytes(const uint8_t* p) { return make_floats([&](int i) { return static_cast<float>(p[i]); }); }
  VISQ_INLINE I ibytes(const uint8_t* p) { return make_ints([&](int i) { return p[i]; }); }
  // Whole numbers from 0 to 255, of one vector or four.
  VISQ_INLINE void to_bytes(uint8_t* p, T x) {
    const auto e = floats(x);
    for (int i = 0; i < W; ++i) p[i] = static_cast<uint8_t>(e[i]);
  }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) {
    for (int j = 0; j < 4; ++j) to_bytes(p + j * W, x[j]);
  }
  // clamp(rint(x) + zero, low, high) of four vectors, 0 <= low, high <= 255; NaN becomes high. zero01 has the zero
  // points of vectors 0 and 1, zero23 those of 2 and 3, interleaved as `zero_place` says.
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, S zero01, S zero23, int low, int high) {
    const auto first = shorts(zero01), second = shorts(zero23);
    for (int j = 0; j < 4; ++j) {
      const auto e = floats(x[j]);
      for (int i = 0; i < W; ++i) {
        const int code = rounded16(e[i]) + (j < 2 ? first : second)[zero_place(j % 2, i)];
        p[j * W + i] = static_cast<uint8_t>(code < low ? low : code > high ? high : code);
      }
    }
  }
  // Where element i of vector 0 or 1 lies when two vectors are packed into 16 bits: the instructions of x86 take four
  // elements from each vector in turn (Engine::pack_zeros).
  VISQ_INLINE int zero_place(int vector, int i) {
    constexpr int kQuarter = W < 4 ? W : 4;
    return i / kQuarter * 2 * kQuarter + vector * kQuarter + i % kQuarter;
  }
  // table[at[i]]
  VISQ_INLINE T pick(const float* table, const uint8_t* at) { return make_floats([&](int i) { return table[at[i]]; }); }
  // W bytes as W shorts.
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) {
    for (int i = 0; i < W; ++i) to[i] = from[i];
  }

  // --- 32-bit integers

  VISQ_INLINE T to_float(I a) {
    const auto x = ints(a);
    return make_floats([&](int i) { return static_cast<float>(x[i]); });
  }
  VISQ_INLINE I izero() { return iset1(0); }
  VISQ_INLINE I iset1(int32_t x) {
    return make_ints([&](int) { return x; });
  }
  VISQ_INLINE I iload(const int32_t* p) { return weights(p); }
  VISQ_INLINE I iadd(I a, I b) { return each32(a, b, [](int32_t x, int32_t y) { return u32(x) + u32(y); }); }
  VISQ_INLINE I isub(I a, I b) { return each32(a, b, [](int32_t x, int32_t y) { return u32(x) - u32(y); }); }
  VISQ_INLINE I imul(I a, I b) { return each32(a, b, [](int32_t x, int32_t y) { return u32(x) * u32(y); }); }
  // Products of the signed low halves; the high halves of `a` are zero, those of `b` may hold anything.
  VISQ_INLINE I imul_low(I a, I b) {
    return each32(a, b, [](int32_t x, int32_t y) { return static_cast<int16_t>(x) * static_cast<int16_t>(y); });
  }

  // --- sums of products: kStep weights of each of W outputs by the same kStep values

  VISQ_INLINE I weights(const void* p) {
    I x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  VISQ_INLINE I broadcast(const void* p) {
    int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return iset1(x);
  }
  VISQ_INLINE I dot(I sum, I w, I x) {
    const auto total = ints(sum);
    const auto a = parts<int16_t>(w), b = parts<int16_t>(x);
    return make_ints([&](int i) {
      return u32(total[i]) + u32(a[2 * i] * b[2 * i]) + u32(a[2 * i + 1] * b[2 * i + 1]);
    });
  }
  // The same bytes.
  VISQ_INLINE S as_shorts(I x) {
    S shorts;
    __builtin_memcpy(&shorts, &x, sizeof x);
    return shorts;
  }
  // Two products of four bytes each by weights of 4 bits. A byte of `packed` holds one weight of each product, the
  // first in its low half.
  struct Pair {
    I first, second;
  };
  VISQ_INLINE Pair nibbles(I packed) {
    const auto x = parts<uint8_t>(packed);
    const auto unpack = [&](int shift) {
      int8_t weight[4 * W];
      for (int i = 0; i < 4 * W; ++i) weight[i] = static_cast<int8_t>(((x[i] >> shift & 15) ^ 8) - 8);
      return weights(weight);
    };
    return {unpack(0), unpack(4)};
  }
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const auto total = ints(sum);
    const auto a = parts<int8_t>(w.first), b = parts<int8_t>(w.second);
    const auto c = parts<uint8_t>(x.first), d = parts<uint8_t>(x.second);
    return make_ints([&](int i) {
      int32_t products = 0;
      for (int k = 4 * i; k < 4 * i + 4; ++k) products += a[k] * c[k] + b[k] * d[k];
      return u32(total[i]) + u32(products);
    });
  }

  // --- 16-bit integers

  VISQ_INLINE S sload(const void* p) {
    S x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  VISQ_INLINE void sstore(void* p, S x) { __builtin_memcpy(p, &x, sizeof x); }
  VISQ_INLINE S sset1(int x) {
    return make_shorts([&](int) { return x; });
  }
  // p[0] for the even elements, p[1] for the odd ones.
  VISQ_INLINE S spair(const int16_t* p) { return make_shorts([&](int i) { return p[i % 2]; }); }
  // Two vectors in the bytes of one, saturated; in an order of the level's own. `load_packed` puts each byte into the
  // high half of its 16 bits.
  VISQ_INLINE void store_packed(void* p, S a, S b) {
    const auto x = shorts(a), y = shorts(b);
    int8_t byte[4 * W];
    for (int i = 0; i < 4 * W; ++i) {
      const int16_t e = i < 2 * W ? x[i] : y[i - 2 * W];
      byte[i] = static_cast<int8_t>(e < -128 ? -128 : e > 127 ? 127 : e);
    }
    __builtin_memcpy(p, byte, sizeof byte);
  }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    int8_t byte[4 * W];
    __builtin_memcpy(byte, p, sizeof byte);
    a = make_shorts([&](int i) { return byte[i] * 256; });
    b = make_shorts([&](int i) { return byte[2 * W + i] * 256; });
  }
  // Rounds each float to 16 bits (saturated, NaN is 32767) and puts it into both elements of its channel.
  VISQ_INLINE S both(T x) {
    const auto e = floats(x);
    return make_shorts([&](int i) { return rounded16(e[i / 2]); });
  }
  VISQ_INLINE void both2(T x, T y, S& to_x, S& to_y) { to_x = both(x), to_y = both(y); }
  // W floats, rounded and saturated.
  VISQ_INLINE void store_shorts(int16_t* p, T x) {
    const auto e = floats(x);
    for (int i = 0; i < W; ++i) p[i] = static_cast<int16_t>(rounded16(e[i]));
  }
  VISQ_INLINE S sadd(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x + y; }); }
  VISQ_INLINE S ssub(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x - y; }); }
  // Saturated.
  VISQ_INLINE S sadds(S a, S b) {
    const auto x = shorts(a), y = shorts(b);
    return make_shorts([&](int i) {
      const int sum = x[i] + y[i];
      return sum < -32768 ? -32768 : sum > 32767 ? 32767 : sum;
    });
  }
  // Low and high half of the product; `_u`: of unsigned numbers.
  VISQ_INLINE S mullo(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x * y; }); }
  VISQ_INLINE S mulhi(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return (x * y) >> 16; }); }
  VISQ_INLINE S mulhi_u(S a, S b) {
    return each16(a, b, [](int16_t x, int16_t y) { return (uint32_t{u16(x)} * u16(y)) >> 16; });
  }
  // (a b + 2^14) / 2^15, rounded down.
  VISQ_INLINE S mulhrs(S a, S b) {
    return each16(a, b, [](int16_t x, int16_t y) { return (x * y + (1 << 14)) >> 15; });
  }
  // The even elements of a, the odd ones of b.
  VISQ_INLINE S alternate(S a, S b) {
    const auto x = shorts(a), y = shorts(b);
    return make_shorts([&](int i) { return i % 2 ? y[i] : x[i]; });
  }
  VISQ_INLINE S sand(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x & y; }); }
  VISQ_INLINE S smin(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x < y ? x : y; }); }
  VISQ_INLINE S smax(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return x > y ? x : y; }); }
  VISQ_INLINE S smin_u(S a, S b) { return each16(a, b, [](int16_t x, int16_t y) { return u16(x) < u16(y) ? x : y; }); }
  // a / 2^6, rounded down.
  VISQ_INLINE S sar6(S a) { return each16(a, a, [](int16_t x, int16_t) { return x >> 6; }); }
  // Shifts by one count for all elements. A count above 15 shifts everything out.
  using Count = int;
  VISQ_INLINE Count count(int n) { return n; }
  VISQ_INLINE S shl(S a, Count n) {
    const auto x = shorts(a);
    return make_shorts([&](int i) { return n > 15 ? 0 : u16(x[i]) << n; });
  }
  VISQ_INLINE S shr(S a, Count n) {
    const auto x = shorts(a);
    return make_shorts([&](int i) { return n > 15 ? 0 : u16(x[i]) >> n; });
  }
  VISQ_INLINE S shr_each(S a, S n) {
    const auto x = shorts(a), by = shorts(n);
    return make_shorts([&](int i) { return u16(by[i]) > 15 ? 0 : u16(x[i]) >> by[i]; });
  }
  // The high half of (high : low) << n, 0 <= n <= 15; `rest` is 16 - n.
  VISQ_INLINE S funnel(S high, S low, Count n, Count rest) {
    (void)rest;
    const auto x = shorts(high), y = shorts(low);
    return make_shorts([&](int i) { return (((uint32_t{u16(x[i])} << 16) | u16(y[i])) << n) >> 16; });
  }
  // table[at[i]], `at` unsigned. May read 2 bytes beyond the table.
  VISQ_INLINE S pick16(const int16_t* table, S at) {
    const auto x = shorts(at);
    return make_shorts([&](int i) { return table[u16(x[i])]; });
  }
  // sum[c] + a[2 c] b[2 c] + a[2 c + 1] b[2 c + 1]
  VISQ_INLINE I dot16(I sum, S a, S b) {
    const auto total = ints(sum);
    const auto x = shorts(a), y = shorts(b);
    return make_ints([&](int i) {
      return u32(total[i]) + u32(x[2 * i] * y[2 * i]) + u32(x[2 * i + 1] * y[2 * i + 1]);
    });
  }
};

}  // namespace visq::VISQ_LEVEL
