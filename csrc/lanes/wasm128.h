// SIMD128 of WebAssembly: 4 floats. A module with such instructions is refused as a whole where they are not known, so a
// page brings a second module without them.
#pragma once
#include <wasm_simd128.h>

#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct WasmTypes {
  using T = v128_t;
  using I = v128_t;
  using S = v128_t;
};

struct Vector : Generic<WasmTypes> {
  // --- floats

  VISQ_INLINE T zero() { return wasm_f32x4_const_splat(0.0f); }
  VISQ_INLINE T set1(float x) { return wasm_f32x4_splat(x); }
  VISQ_INLINE T load(const float* p) { return wasm_v128_load(p); }
  VISQ_INLINE void store(float* p, T x) { wasm_v128_store(p, x); }
  VISQ_INLINE T add(T a, T b) { return wasm_f32x4_add(a, b); }
  VISQ_INLINE T sub(T a, T b) { return wasm_f32x4_sub(a, b); }
  VISQ_INLINE T mul(T a, T b) { return wasm_f32x4_mul(a, b); }
  VISQ_INLINE T div(T a, T b) { return wasm_f32x4_div(a, b); }
  VISQ_INLINE T fma(T a, T b, T c) { return add(mul(a, b), c); }
  VISQ_INLINE T fnma(T a, T b, T c) { return sub(c, mul(a, b)); }
  // pmin(x, y) is y < x ? y : x.
  VISQ_INLINE T min(T a, T b) { return wasm_f32x4_pmin(b, a); }
  VISQ_INLINE T max(T a, T b) { return wasm_f32x4_pmax(b, a); }
  VISQ_INLINE T abs(T a) { return wasm_f32x4_abs(a); }
  VISQ_INLINE T neg(T a) { return wasm_f32x4_neg(a); }
  VISQ_INLINE T sqrt(T a) { return wasm_f32x4_sqrt(a); }
  VISQ_INLINE T rint(T a) { return wasm_f32x4_nearest(a); }
  VISQ_INLINE T times_pow2(T p, T n) { return wasm_i32x4_add(p, wasm_i32x4_shl(n, 23)); }
  VISQ_INLINE T nan_from(T v, T x) { return wasm_v128_bitselect(x, v, wasm_f32x4_ne(x, x)); }

  // --- bytes

  VISQ_INLINE v128_t four_shorts(const uint8_t* p) { return wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p)); }
  VISQ_INLINE I ibytes(const uint8_t* p) { return wasm_u32x4_extend_low_u16x8(four_shorts(p)); }
  VISQ_INLINE T bytes(const uint8_t* p) { return to_float(ibytes(p)); }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) { wasm_v128_store64_lane(to, four_shorts(from), 0); }
  VISQ_INLINE v128_t whole(T a, T b) {
    return wasm_i16x8_narrow_i32x4(wasm_i32x4_trunc_sat_f32x4(a), wasm_i32x4_trunc_sat_f32x4(b));
  }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) {
    wasm_v128_store(p, wasm_u8x16_narrow_i16x8(whole(x[0], x[1]), whole(x[2], x[3])));
  }
  // Half to even, saturated to 16 bits; NaN is 32767.
  VISQ_INLINE T rounded(T x) { return rint(min(x, set1(32767.0f))); }
  VISQ_INLINE S rounded(T a, T b) { return whole(rounded(a), rounded(b)); }
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, S zero01, S zero23, int low, int high) {
    const S least = sset1(low), most = sset1(high);
    const S a = smin(smax(sadds(rounded(x[0], x[1]), zero01), least), most);
    const S b = smin(smax(sadds(rounded(x[2], x[3]), zero23), least), most);
    wasm_v128_store(p, wasm_u8x16_narrow_i16x8(a, b));
  }

  // --- 32-bit integers

  VISQ_INLINE T to_float(I a) { return wasm_f32x4_convert_i32x4(a); }
  VISQ_INLINE I izero() { return wasm_i32x4_const_splat(0); }
  VISQ_INLINE I iset1(int32_t x) { return wasm_i32x4_splat(x); }
  VISQ_INLINE I iadd(I a, I b) { return wasm_i32x4_add(a, b); }
  VISQ_INLINE I isub(I a, I b) { return wasm_i32x4_sub(a, b); }
  VISQ_INLINE I imul(I a, I b) { return wasm_i32x4_mul(a, b); }
  VISQ_INLINE I imul_low(I a, I b) { return wasm_i32x4_dot_i16x8(a, b); }

  // --- sums of products

  VISQ_INLINE I broadcast(const void* p) { return wasm_v128_load32_splat(p); }
  VISQ_INLINE I dot16(I sum, S a, S b) { return wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(a, b)); }
  VISQ_INLINE I dot(I sum, I w, I x) { return dot16(sum, w, x); }
  VISQ_INLINE Pair nibbles(I packed) {
    return {wasm_i8x16_shr(wasm_i8x16_shl(packed, 4), 4), wasm_i8x16_shr(packed, 4)};
  }
  // In 16 bits: two products of at most 8 * 255.
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const auto add = [](v128_t a, v128_t b, v128_t c, v128_t d) {
      return wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_add(wasm_i16x8_mul(a, b), wasm_i16x8_mul(c, d)));
    };
    const v128_t first = add(wasm_i16x8_extend_low_i8x16(w.first), wasm_u16x8_extend_low_u8x16(x.first),
                             wasm_i16x8_extend_low_i8x16(w.second), wasm_u16x8_extend_low_u8x16(x.second));
    const v128_t last = add(wasm_i16x8_extend_high_i8x16(w.first), wasm_u16x8_extend_high_u8x16(x.first),
                            wasm_i16x8_extend_high_i8x16(w.second), wasm_u16x8_extend_high_u8x16(x.second));
    const v128_t even = wasm_i32x4_shuffle(first, last, 0, 2, 4, 6), odd = wasm_i32x4_shuffle(first, last, 1, 3, 5, 7);
    return wasm_i32x4_add(sum, wasm_i32x4_add(even, odd));
  }

  // --- 16-bit integers

  VISQ_INLINE S sload(const void* p) { return wasm_v128_load(p); }
  VISQ_INLINE void sstore(void* p, S x) { wasm_v128_store(p, x); }
  VISQ_INLINE S sset1(int x) { return wasm_i16x8_splat(static_cast<int16_t>(x)); }
  VISQ_INLINE S spair(const int16_t* p) { return wasm_v128_load32_splat(p); }
  VISQ_INLINE void store_packed(void* p, S a, S b) { wasm_v128_store(p, wasm_i8x16_narrow_i16x8(a, b)); }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const v128_t x = wasm_v128_load(p), zero = izero();
    a = wasm_i8x16_shuffle(zero, x, 0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 22, 0, 23);
    b = wasm_i8x16_shuffle(zero, x, 0, 24, 0, 25, 0, 26, 0, 27, 0, 28, 0, 29, 0, 30, 0, 31);
  }
  VISQ_INLINE S both(T x) {
    const S e = rounded(x, x);
    return wasm_i16x8_shuffle(e, e, 0, 0, 1, 1, 2, 2, 3, 3);
  }
  VISQ_INLINE void both2(T x, T y, S& to_x, S& to_y) {
    const S e = rounded(x, y);
    to_x = wasm_i16x8_shuffle(e, e, 0, 0, 1, 1, 2, 2, 3, 3), to_y = wasm_i16x8_shuffle(e, e, 4, 4, 5, 5, 6, 6, 7, 7);
  }
  VISQ_INLINE void store_shorts(int16_t* p, T x) { wasm_v128_store64_lane(p, rounded(x, x), 0); }
  VISQ_INLINE S sadd(S a, S b) { return wasm_i16x8_add(a, b); }
  VISQ_INLINE S ssub(S a, S b) { return wasm_i16x8_sub(a, b); }
  VISQ_INLINE S sadds(S a, S b) { return wasm_i16x8_add_sat(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return wasm_i16x8_mul(a, b); }
  // The odd 16 bits of the products are their high halves.
  VISQ_INLINE S high_halves(I a, I b) { return wasm_i16x8_shuffle(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
  VISQ_INLINE S mulhi(S a, S b) {
    return high_halves(wasm_i32x4_extmul_low_i16x8(a, b), wasm_i32x4_extmul_high_i16x8(a, b));
  }
  VISQ_INLINE S mulhi_u(S a, S b) {
    return high_halves(wasm_u32x4_extmul_low_u16x8(a, b), wasm_u32x4_extmul_high_u16x8(a, b));
  }
  // -32768 times itself saturates to 32767; inverting all bits makes it -32768.
  VISQ_INLINE S mulhrs(S a, S b) {
    const S least = wasm_i16x8_const_splat(-32768);
    const S both_least = wasm_v128_and(wasm_i16x8_eq(a, least), wasm_i16x8_eq(b, least));
    return wasm_v128_xor(wasm_i16x8_q15mulr_sat(a, b), both_least);
  }
  VISQ_INLINE S alternate(S a, S b) { return wasm_i16x8_shuffle(a, b, 0, 9, 2, 11, 4, 13, 6, 15); }
  VISQ_INLINE S sand(S a, S b) { return wasm_v128_and(a, b); }
  VISQ_INLINE S smin(S a, S b) { return wasm_i16x8_min(a, b); }
  VISQ_INLINE S smax(S a, S b) { return wasm_i16x8_max(a, b); }
  VISQ_INLINE S smin_u(S a, S b) { return wasm_u16x8_min(a, b); }
  VISQ_INLINE S sar6(S a) { return wasm_i16x8_shr(a, 6); }
  // The instructions take counts modulo 16.
  VISQ_INLINE S shl(S a, Count n) { return n > 15 ? izero() : wasm_i16x8_shl(a, static_cast<uint32_t>(n)); }
  VISQ_INLINE S shr(S a, Count n) { return n > 15 ? izero() : wasm_u16x8_shr(a, static_cast<uint32_t>(n)); }
  // There is no shift by elements: a 2^(15 - n) / 2^15, whose powers come from tables of bytes. Beyond a table is 0.
  VISQ_INLINE S shr_each(S a, S n) {
    const v128_t at = wasm_v128_or(smin_u(n, sset1(16)), sset1(-256));
    const v128_t high = wasm_i8x16_const(-128, 64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const v128_t low = wasm_i8x16_const(0, 0, 0, 0, 0, 0, 0, 0, -128, 64, 32, 16, 8, 4, 2, 1);
    const v128_t power = wasm_v128_or(wasm_i8x16_swizzle(low, at), wasm_i16x8_shl(wasm_i8x16_swizzle(high, at), 8));
    return wasm_u16x8_narrow_i32x4(wasm_u32x4_shr(wasm_u32x4_extmul_low_u16x8(a, power), 15),
                                   wasm_u32x4_shr(wasm_u32x4_extmul_high_u16x8(a, power), 15));
  }
  VISQ_INLINE S funnel(S high, S low, Count n, Count rest) { return wasm_v128_or(shl(high, n), shr(low, rest)); }
};

}  // namespace visq::VISQ_LEVEL
