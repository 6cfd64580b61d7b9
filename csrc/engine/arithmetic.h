// visq.runtime.arithmetic in vectors: the same operations in the same order, each rounded by itself.
#pragma once
#include "lanes.h"

namespace visq::engine {

// NaN becomes the upper bound, so that every conversion to integers is defined.
template <class V>
VISQ_INLINE typename V::T clamp(typename V::T x, typename V::T low, typename V::T high) {
  return V::max(V::min(x, high), low);
}

template <class V>
VISQ_INLINE typename V::T exp2(typename V::T x) {
  x = clamp<V>(x, V::set1(-126.0f), V::set1(126.0f));
  const auto whole = V::rint(x), r = V::sub(x, whole);
  auto p = V::set1(kExp2[0]);
  for (int i = 1; i < kExp2Terms; ++i) p = V::add(V::mul(p, r), V::set1(kExp2[i]));
  p = V::add(V::mul(p, r), V::set1(1.0f));
  return V::mul(p, Lanes<V>::pow2(whole));
}

template <class V>
VISQ_INLINE typename V::T silu(typename V::T x) {
  const auto e = exp2<V>(V::mul(Lanes<V>::neg(x), V::set1(kLog2e)));
  return V::div(x, V::add(V::set1(1.0f), e));
}

template <class V>
VISQ_INLINE typename V::T softplus(typename V::T x) {
  const auto t = exp2<V>(V::mul(Lanes<V>::neg(V::abs(x)), V::set1(kLog2e)));
  const auto s = V::div(t, V::add(V::set1(2.0f), t)), square = V::mul(s, s);
  auto p = V::set1(static_cast<float>(2.0 / 13));
  for (int k = 11; k > 0; k -= 2) p = V::add(V::mul(p, square), V::set1(static_cast<float>(2.0 / k)));
  return V::add(V::max(x, V::zero()), V::mul(s, p));
}

}  // namespace visq::engine
