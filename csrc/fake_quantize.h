// decode(encode(x)) of a uniform quantizer in one pass over memory; the arithmetic of visq.quant.quantizer, step by step.
#pragma once
#include "kernels.h"
#include "threads.h"
#include "vec.h"

namespace visq {

constexpr int64_t kQuantizeRows = 16;  // rows of one task

template <class V>
void fake_quantize(const FakeQuantizeArgs& a, float* y) {
  const auto qmin = V::set1(a.qmin), qmax = V::set1(a.qmax);
  const int64_t chunks = (a.L + kQuantizeRows - 1) / kQuantizeRows;
  auto body = [&](int64_t task) {
    const int64_t b = task / chunks, t0 = task % chunks * kQuantizeRows;
    const int64_t t1 = t0 + kQuantizeRows < a.L ? t0 + kQuantizeRows : a.L;
    for (int64_t t = t0; t < t1; ++t) {
      const float* x = a.x.at(b, t);
      float* row = y + (b * a.L + t) * a.C;
      const int64_t at = a.axis == FakeQuantizeArgs::kRow ? t : 0;
      auto scale = V::set1(a.scale[at]), zero = a.zero ? V::set1(a.zero[at]) : V::zero();
      for (int64_t c = 0; c < a.C; c += V::W) {
        const int lanes = static_cast<int>(a.C - c < V::W ? a.C - c : V::W);
        if (a.axis == FakeQuantizeArgs::kColumn) {
          scale = V::load_n(a.scale + c, lanes);
          if (a.zero) zero = V::load_n(a.zero + c, lanes);
        }
        const auto smooth = a.smooth ? V::load_n(a.smooth + c, lanes) : V::set1(1.0f);
        auto v = V::div(V::div(V::load_n(x + c, lanes), smooth), scale);
        v = V::max(qmin, V::min(qmax, V::add(V::rint(v), zero)));
        V::store_n(row + c, V::mul(V::mul(V::sub(v, zero), scale), smooth), lanes);
      }
    }
  };
  parallel_for(a.B * chunks, a.threads, body);
}

}  // namespace visq
