// Causal depthwise convolution over the tokens: y[b, t, d] = bias[d] + sum_k weight[d, k] x[b, t - K + 1 + k, d].
#pragma once
#include "ops/ops.h"
#include "run/threads.h"
#include "lanes/generic.h"

namespace visq::ops::VISQ_LEVEL {

constexpr int64_t kConvTokens = 32;    // tokens of one forward task
constexpr int64_t kConvChannels = 64;  // channels of one task of the weight gradient
constexpr int64_t kConvBatches = 16;   // at most this many partial sums over images

// out[k][d] = weight[d][k]
VISQ_INLINE void transpose_taps(const float* weight, int64_t D, int64_t K, float* out) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t k = 0; k < K; ++k) out[k * D + d] = weight[d * K + k];
}

template <class V>
void conv_forward(const ConvArgs& a, float* y) {
  Buffer taps(a.D * a.K);
  transpose_taps(a.weight, a.D, a.K, taps.data());
  const int64_t chunks = (a.L + kConvTokens - 1) / kConvTokens;
  auto body = [&](int64_t task) {
    const int64_t b = task / chunks, t0 = task % chunks * kConvTokens;
    const int64_t t1 = t0 + kConvTokens < a.L ? t0 + kConvTokens : a.L;
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t c = 0; c < a.D; c += V::W) {
        const int lanes = static_cast<int>(a.D - c < V::W ? a.D - c : V::W);
        auto sum = a.bias ? V::load_n(a.bias + c, lanes) : V::zero();
        for (int64_t k = 0; k < a.K; ++k) {
          const int64_t from = t - a.K + 1 + k;
          if (from < 0) continue;
          sum = V::fma(V::load_n(taps.data() + k * a.D + c, lanes), V::load_n(a.x.at(b, from) + c, lanes), sum);
        }
        V::store_n(y + (b * a.L + t) * a.D + c, sum, lanes);
      }
  };
  parallel_for(a.B * chunks, a.threads, body);
}

template <class V>
void conv_backward(const ConvArgs& a, Rows gy, float* grad_x, float* grad_weight, float* grad_bias) {
  Buffer taps(a.D * a.K);
  transpose_taps(a.weight, a.D, a.K, taps.data());
  const int64_t batches = a.B < kConvBatches ? a.B : kConvBatches;
  const int64_t slices = (a.D + kConvChannels - 1) / kConvChannels;
  // Partial sums, [batches][K + 1][D]: row K is the bias.
  Buffer partial(batches * (a.K + 1) * a.D);
  auto body = [&](int64_t task) {
    const int64_t part = task / slices, begin = task % slices * kConvChannels;
    const int64_t end = begin + kConvChannels < a.D ? begin + kConvChannels : a.D;
    float* sums = partial.data() + part * (a.K + 1) * a.D;
    for (int64_t b = part * a.B / batches; b < (part + 1) * a.B / batches; ++b)
      for (int64_t t = 0; t < a.L; ++t)
        for (int64_t c = begin; c < end; c += V::W) {
          const int lanes = static_cast<int>(end - c < V::W ? end - c : V::W);
          auto gx = V::zero();
          const auto g = V::load_n(gy.at(b, t) + c, lanes);
          for (int64_t k = 0; k < a.K; ++k) {
            const int64_t from = t - a.K + 1 + k, to = t + a.K - 1 - k;
            if (to < a.L)
              gx = V::fma(V::load_n(taps.data() + k * a.D + c, lanes), V::load_n(gy.at(b, to) + c, lanes), gx);
            float* sum = sums + k * a.D + c;
            if (from >= 0)
              V::store_n(sum, V::fma(g, V::load_n(a.x.at(b, from) + c, lanes), V::load_n(sum, lanes)), lanes);
          }
          V::store_n(grad_x + (b * a.L + t) * a.D + c, gx, lanes);
          float* sum = sums + a.K * a.D + c;
          V::store_n(sum, V::add(g, V::load_n(sum, lanes)), lanes);
        }
  };
  parallel_for(batches * slices, a.threads, body);
  for (int64_t d = 0; d < a.D; ++d)
    for (int64_t k = 0; k <= a.K; ++k) {
      float sum = 0.0f;
      for (int64_t p = 0; p < batches; ++p) sum += partial.data()[(p * (a.K + 1) + k) * a.D + d];
      if (k < a.K)
        grad_weight[d * a.K + k] = sum;
      else if (grad_bias)
        grad_bias[d] = sum;
    }
}

}  // namespace visq::ops::VISQ_LEVEL
