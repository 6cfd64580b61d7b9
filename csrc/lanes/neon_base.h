// What the levels of 64-bit ARM share: 4 floats. Every 64-bit ARM processor has it.
#pragma once
#include <arm_neon.h>

#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct NeonTypes {
  using T = float32x4_t;
  using I = int32x4_t;
  using S = int16x8_t;
};

struct Neon : Generic<NeonTypes> {
  // --- floats

  VISQ_INLINE T zero() { return vdupq_n_f32(0.0f); }
  VISQ_INLINE T set1(float x) { return vdupq_n_f32(x); }
  VISQ_INLINE T load(const float* p) { return vld1q_f32(p); }
  VISQ_INLINE void store(float* p, T x) { vst1q_f32(p, x); }
  VISQ_INLINE T add(T a, T b) { return vaddq_f32(a, b); }
  VISQ_INLINE T sub(T a, T b) { return vsubq_f32(a, b); }
  VISQ_INLINE T mul(T a, T b) { return vmulq_f32(a, b); }
  VISQ_INLINE T div(T a, T b) { return vdivq_f32(a, b); }
  VISQ_INLINE T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
  VISQ_INLINE T fnma(T a, T b, T c) { return vfmsq_f32(c, a, b); }
  // A comparison and a choice, because FMIN and FMAX return NaN where either is NaN.
  VISQ_INLINE T min(T a, T b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  VISQ_INLINE T max(T a, T b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  VISQ_INLINE T abs(T a) { return vabsq_f32(a); }
  VISQ_INLINE T neg(T a) { return vnegq_f32(a); }
  VISQ_INLINE T sqrt(T a) { return vsqrtq_f32(a); }
  VISQ_INLINE T rint(T a) { return vrndnq_f32(a); }
  VISQ_INLINE T times_pow2(T p, T n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vreinterpretq_s32_f32(n), 23)));
  }

  // --- bytes

  VISQ_INLINE uint8x8_t four_bytes(const uint8_t* p) {
    uint32_t x;
    __builtin_memcpy(&x, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(x));
  }
  VISQ_INLINE I ibytes(const uint8_t* p) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))));
  }
  VISQ_INLINE T bytes(const uint8_t* p) { return vcvtq_f32_s32(ibytes(p)); }
  VISQ_INLINE void widen(const uint8_t* from, int16_t* to) {
    vst1_s16(to, vreinterpret_s16_u16(vget_low_u16(vmovl_u8(four_bytes(from)))));
  }
  VISQ_INLINE void to_bytes4(uint8_t* p, const T* x) {
    vst1q_u8(p, vcombine_u8(vqmovun_s16(vcombine_s16(vmovn_s32(vcvtq_s32_f32(x[0])), vmovn_s32(vcvtq_s32_f32(x[1])))),
                            vqmovun_s16(vcombine_s16(vmovn_s32(vcvtq_s32_f32(x[2])), vmovn_s32(vcvtq_s32_f32(x[3]))))));
  }
  // Half to even, saturated to 16 bits; NaN is 32767.
  VISQ_INLINE int16x4_t rounded(T x) { return vqmovn_s32(vcvtnq_s32_f32(min(x, set1(32767.0f)))); }
  VISQ_INLINE void round_to_bytes(uint8_t* p, const T* x, S zero01, S zero23, int low, int high) {
    const S least = sset1(low), most = sset1(high);
    const S a = vqaddq_s16(vcombine_s16(rounded(x[0]), rounded(x[1])), zero01);
    const S b = vqaddq_s16(vcombine_s16(rounded(x[2]), rounded(x[3])), zero23);
    vst1q_u8(p, vcombine_u8(vqmovun_s16(smin(smax(a, least), most)), vqmovun_s16(smin(smax(b, least), most))));
  }

  // --- 32-bit integers

  VISQ_INLINE T to_float(I a) { return vcvtq_f32_s32(a); }
  VISQ_INLINE I izero() { return vdupq_n_s32(0); }
  VISQ_INLINE I iset1(int32_t x) { return vdupq_n_s32(x); }
  VISQ_INLINE I iadd(I a, I b) { return vaddq_s32(a, b); }
  VISQ_INLINE I isub(I a, I b) { return vsubq_s32(a, b); }
  VISQ_INLINE I imul(I a, I b) { return vmulq_s32(a, b); }

  // --- sums of products

  VISQ_INLINE I broadcast(const void* p) {
    int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return vdupq_n_s32(x);
  }
  VISQ_INLINE I dot16(I sum, S a, S b) {
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
  }
  VISQ_INLINE I dot(I sum, I w, I x) { return dot16(sum, vreinterpretq_s16_s32(w), vreinterpretq_s16_s32(x)); }
  VISQ_INLINE Pair nibbles(I packed) {
    const int8x16_t x = vreinterpretq_s8_s32(packed);
    return {vreinterpretq_s32_s8(vshrq_n_s8(vshlq_n_s8(x, 4), 4)), vreinterpretq_s32_s8(vshrq_n_s8(x, 4))};
  }
  // In 16 bits: two products of at most 8 * 255.
  VISQ_INLINE I dot_pair(I sum, Pair w, Pair x) {
    const int8x16_t a = vreinterpretq_s8_s32(w.first), b = vreinterpretq_s8_s32(w.second);
    const uint8x16_t c = vreinterpretq_u8_s32(x.first), d = vreinterpretq_u8_s32(x.second);
    const auto low = [](int8x16_t v) { return vmovl_s8(vget_low_s8(v)); };
    const auto low_u = [](uint8x16_t v) { return vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))); };
    const auto high_u = [](uint8x16_t v) { return vreinterpretq_s16_u16(vmovl_high_u8(v)); };
    const S first = vmlaq_s16(vmulq_s16(low(a), low_u(c)), low(b), low_u(d));
    const S last = vmlaq_s16(vmulq_s16(vmovl_high_s8(a), high_u(c)), vmovl_high_s8(b), high_u(d));
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(last)));
  }

  // --- 16-bit integers

  VISQ_INLINE S sload(const void* p) { return vld1q_s16(static_cast<const int16_t*>(p)); }
  VISQ_INLINE void sstore(void* p, S x) { vst1q_s16(static_cast<int16_t*>(p), x); }
  VISQ_INLINE S sset1(int x) { return vdupq_n_s16(static_cast<int16_t>(x)); }
  VISQ_INLINE S spair(const int16_t* p) { return vreinterpretq_s16_s32(broadcast(p)); }
  VISQ_INLINE void store_packed(void* p, S a, S b) {
    vst1q_s8(static_cast<int8_t*>(p), vcombine_s8(vqmovn_s16(a), vqmovn_s16(b)));
  }
  VISQ_INLINE void load_packed(const void* p, S& a, S& b) {
    const int8x16_t x = vld1q_s8(static_cast<const int8_t*>(p));
    a = vshll_n_s8(vget_low_s8(x), 8), b = vshll_high_n_s8(x, 8);
  }
  VISQ_INLINE S both(T x) {
    const int16x4_t e = rounded(x);
    return vcombine_s16(vzip1_s16(e, e), vzip2_s16(e, e));
  }
  VISQ_INLINE void both2(T x, T y, S& to_x, S& to_y) { to_x = both(x), to_y = both(y); }
  VISQ_INLINE void store_shorts(int16_t* p, T x) { vst1_s16(p, rounded(x)); }
  VISQ_INLINE S sadd(S a, S b) { return vaddq_s16(a, b); }
  VISQ_INLINE S ssub(S a, S b) { return vsubq_s16(a, b); }
  VISQ_INLINE S sadds(S a, S b) { return vqaddq_s16(a, b); }
  VISQ_INLINE S mullo(S a, S b) { return vmulq_s16(a, b); }
  // The odd 16 bits of the products are their high halves.
  VISQ_INLINE S mulhi(S a, S b) {
    return vuzp2q_s16(vreinterpretq_s16_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b))),
                      vreinterpretq_s16_s32(vmull_high_s16(a, b)));
  }
  VISQ_INLINE S mulhi_u(S a, S b) {
    const uint16x8_t x = vreinterpretq_u16_s16(a), y = vreinterpretq_u16_s16(b);
    return vuzp2q_s16(vreinterpretq_s16_u32(vmull_u16(vget_low_u16(x), vget_low_u16(y))),
                      vreinterpretq_s16_u32(vmull_high_u16(x, y)));
  }
  // Not SQRDMULH, which saturates -32768 times itself.
  VISQ_INLINE S mulhrs(S a, S b) {
    return vrshrn_high_n_s32(vrshrn_n_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), 15), vmull_high_s16(a, b), 15);
  }
  VISQ_INLINE S alternate(S a, S b) { return vbslq_s16(vreinterpretq_u16_u32(vdupq_n_u32(0xffff)), a, b); }
  VISQ_INLINE S sand(S a, S b) { return vandq_s16(a, b); }
  VISQ_INLINE S smin(S a, S b) { return vminq_s16(a, b); }
  VISQ_INLINE S smax(S a, S b) { return vmaxq_s16(a, b); }
  VISQ_INLINE S smin_u(S a, S b) {
    return vreinterpretq_s16_u16(vminq_u16(vreinterpretq_u16_s16(a), vreinterpretq_u16_s16(b)));
  }
  VISQ_INLINE S sar6(S a) { return vshrq_n_s16(a, 6); }
  // USHL shifts left, or right by a negative count, and by 16 or more shifts everything out.
  VISQ_INLINE S shifted(S a, S n) { return vreinterpretq_s16_u16(vshlq_u16(vreinterpretq_u16_s16(a), n)); }
  VISQ_INLINE S shl(S a, Count n) { return shifted(a, sset1(n > 16 ? 16 : n)); }
  VISQ_INLINE S shr(S a, Count n) { return shifted(a, sset1(n > 16 ? -16 : -n)); }
  VISQ_INLINE S shr_each(S a, S n) { return shifted(a, vnegq_s16(smin_u(n, sset1(16)))); }
  VISQ_INLINE S funnel(S high, S low, Count n, Count rest) { return vorrq_s16(shl(high, n), shr(low, rest)); }
};

}  // namespace visq::VISQ_LEVEL
