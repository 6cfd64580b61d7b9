// decode(encode(x)) of a uniform quantizer in one pass over memory, by the arithmetic of visq.quant.quantizer.
#pragma once
#include "ops/ops.h"
#include "run/threads.h"
#include "lanes/generic.h"

namespace visq::ops::VISQ_LEVEL {

constexpr int64_t kQuantizeRows = 16;  // rows of one task

template <class V>
void fake_quantize(const FakeQuantizeArgs& a, float* y) {
  const auto qmin = V::set1(a.qmin), qmax = V::set1(a.qmax);
  const int64_t chunks = (a.L + kQuantizeRows - 1) / kQuantizeRows;
  auto body = [&](int64_t task) {
    const int64_t b = task / chunks, t0 = task % chunks * kQuantizeRows;
    const int64_t t1 = t0 + kQuantizeRows < a.L ? t0 + kQuantizeRows : a.L;
    const bool by_token = a.axis == FakeQuantizeArgs::kRow, by_channel = a.axis == FakeQuantizeArgs::kColumn;
    const auto one = V::set1(1.0f);
    for (int64_t c = 0; c < a.C; c += V::W) {
      const int lanes = static_cast<int>(a.C - c < V::W ? a.C - c : V::W);
      // The scale of a channel, and its reciprocal.
      auto step = a.smooth ? V::load_n(a.smooth + c, lanes) : one, zero = V::zero();
      if (!by_token) step = V::mul(by_channel ? V::load_n(a.scale + c, lanes) : V::set1(a.scale[0]), step);
      if (a.zero && !by_token) zero = by_channel ? V::load_n(a.zero + c, lanes) : V::set1(a.zero[0]);
      const auto inverse = V::div(one, step);
      for (int64_t t = t0; t < t1; ++t) {
        auto v = V::mul(V::load_n(a.x.at(b, t) + c, lanes), inverse), token = one;
        if (by_token) {
          token = V::set1(a.scale[t]);
          v = V::mul(v, V::div(one, token));
          if (a.zero) zero = V::set1(a.zero[t]);
        }
        v = V::max(qmin, V::min(qmax, V::add(V::rint(v), zero)));
        v = V::mul(V::sub(v, zero), step);
        V::store_n(y + (b * a.L + t) * a.C + c, by_token ? V::mul(v, token) : v, lanes);
      }
    }
  };
  parallel_for(a.B * chunks, a.threads, body);
}

}  // namespace visq::ops::VISQ_LEVEL
