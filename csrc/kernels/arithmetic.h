// The functions of visq.integer.arithmetic on vectors: the same operations in the same order, each rounded by itself.
#pragma once
#include "lanes/generic.h"

namespace visq::engine::VISQ_LEVEL {

// Turns NaN into the upper bound, so that every conversion to integers is defined.
template <class V>
VISQ_INLINE typename V::T clamp(typename V::T x, typename V::T low, typename V::T high) {
  return V::max(V::min(x, high), low);
}

// All functions below work on U vectors in lockstep, in place: a single one is a long chain of dependent instructions.
// GELU's approximation by tanh: -2 sqrt(2 / pi) log2(e), and 0.044715 times that.
constexpr float kGeluTanh0 = -2.302208198144325f, kGeluTanh1 = -0.1029432395800235f;

#define VISQ_EACH _Pragma("GCC unroll 8") for (int j = 0; j < U; ++j)

// a + b and a - b, which Zen 4 can compute where it multiplies: additions, limits and conversions share two other units,
// and are most of an exponential.
template <class V>
VISQ_INLINE typename V::T plus(typename V::T a, typename V::T b) {
  if constexpr (V::kSpreads) return V::fma(a, V::set1(1.0f), b);
  return V::add(a, b);
}
template <class V>
VISQ_INLINE typename V::T minus(typename V::T a, typename V::T b) {
  if constexpr (V::kSpreads) return V::fnma(b, V::set1(1.0f), a);
  return V::sub(a, b);
}

// kAnyNan: a NaN is positive, or its result does not matter.
template <class V, int U, bool kAnyNan = false>
VISQ_INLINE void exp2(typename V::T* x) {
  typename V::T whole[U], p[U];
  if constexpr (kAnyNan && V::kSpreads) {
    VISQ_EACH x[j] = V::within(x[j], V::set1(126.0f));
  } else {
    VISQ_EACH x[j] = clamp<V>(x[j], V::set1(-126.0f), V::set1(126.0f));
  }
  // A float of this size has no room for a fraction, so the addition rounds, and its low bits hold the integer.
  const auto shift = V::set1(12582912.0f);  // 1.5 * 2^23
  VISQ_EACH whole[j] = plus<V>(x[j], shift);
  VISQ_EACH x[j] = minus<V>(x[j], V::sub(whole[j], shift));
  VISQ_EACH p[j] = V::add(V::mul(V::set1(kExp2[0]), x[j]), V::set1(kExp2[1]));
  VISQ_EACH p[j] = V::add(V::mul(p[j], x[j]), V::set1(kExp2[2]));
  VISQ_EACH p[j] = V::add(V::mul(p[j], x[j]), V::set1(kExp2[3]));
  VISQ_EACH p[j] = V::add(V::mul(p[j], x[j]), V::set1(kExp2[4]));
  VISQ_EACH p[j] = V::add(V::mul(p[j], x[j]), V::set1(1.0f));
  VISQ_EACH x[j] = V::times_pow2(p[j], whole[j]);
}

template <class V, int U>
VISQ_INLINE void silu(typename V::T* x) {
  typename V::T e[U];
  VISQ_EACH e[j] = V::mul(x[j], V::set1(-kLog2e));
  exp2<V, U, true>(e);
  VISQ_EACH x[j] = V::div(x[j], V::add(V::set1(1.0f), e[j]));
}

// Coefficients of log1p(t) / t, highest power first.
constexpr int kLog1pTerms = 8;
constexpr float kLog1p[kLog1pTerms] = {-0.008539096660709065f, 0.04408908674371943f,  -0.1076807111839376f,
                                       0.17745151404011458f,   -0.24495420885334337f, 0.33275470060354423f,
                                       -0.49997404443567883f,  0.9999998054173769f};

template <class V, int U>
VISQ_INLINE void softplus(typename V::T* x) {
  typename V::T t[U], p[U];
  VISQ_EACH t[j] = V::mul(V::abs(x[j]), V::set1(-kLog2e));
  exp2<V, U, true>(t);
  VISQ_EACH p[j] = V::set1(kLog1p[0]);
  _Pragma("GCC unroll 8") for (int i = 1; i < kLog1pTerms; ++i) {
    VISQ_EACH p[j] = V::add(V::mul(p[j], t[j]), V::set1(kLog1p[i]));
  }
  VISQ_EACH x[j] = V::add(V::max(x[j], V::zero()), V::mul(t[j], p[j]));
}

// max(x, 0) - a tail(a) with a = min(|x|, 13); NaN stays NaN.
template <class V, int U>
VISQ_INLINE void gelu(typename V::T* x) {
  typename V::T a[U], t[U], e[U], p[U];
  VISQ_EACH a[j] = V::min(V::set1(13.0f), V::abs(x[j]));
  VISQ_EACH t[j] = V::div(V::set1(1.0f), V::add(V::set1(1.0f), V::mul(V::set1(0.2316419f), a[j])));
  VISQ_EACH e[j] = V::mul(V::mul(a[j], a[j]), V::set1(-0.5f * kLog2e));
  exp2<V, U>(e);
  VISQ_EACH p[j] = V::add(V::mul(V::set1(0.53070271f), t[j]), V::set1(-0.72657601f));
  VISQ_EACH p[j] = V::add(V::mul(p[j], t[j]), V::set1(0.71070687f));
  VISQ_EACH p[j] = V::add(V::mul(p[j], t[j]), V::set1(-0.14224837f));
  VISQ_EACH p[j] = V::add(V::mul(p[j], t[j]), V::set1(0.12741479f));
  VISQ_EACH p[j] = V::mul(V::mul(p[j], t[j]), e[j]);
  VISQ_EACH x[j] = V::sub(V::max(x[j], V::zero()), V::mul(a[j], p[j]));
}

template <class V, int U>
VISQ_INLINE void sigmoid(typename V::T* x) {
  VISQ_EACH x[j] = V::mul(x[j], V::set1(-kLog2e));
  exp2<V, U>(x);
  VISQ_EACH x[j] = V::div(V::set1(1.0f), V::add(V::set1(1.0f), x[j]));
}

// x / (1 + 2^((c0 + c1 x^2) x))
template <class V, int U>
VISQ_INLINE void gelu_tanh(typename V::T* x) {
  typename V::T e[U];
  VISQ_EACH e[j] = V::add(V::mul(V::mul(x[j], x[j]), V::set1(kGeluTanh1)), V::set1(kGeluTanh0));
  VISQ_EACH e[j] = V::mul(e[j], x[j]);
  exp2<V, U, true>(e);
  VISQ_EACH x[j] = V::div(x[j], V::add(V::set1(1.0f), e[j]));
}

#undef VISQ_EACH

}  // namespace visq::engine::VISQ_LEVEL
