// Forward selective scan, plain or with quantized abar, bbar and state.
//
//   abar = Qa(exp(delta A)),  bbar = Qb(delta B),  h = abar hq_prev + bbar u,  hq = Qh(h),  y = sum_n C (hq or h)
//
// One task is one image and one block of W channels: lanes are channels, and every row array below is [N][W].
#pragma once
#include "kernels.h"
#include "threads.h"
#include "vec.h"

namespace visq {

enum class State { kPlain, kReadQuantized, kReadRaw };

VISQ_INLINE State state_mode(const StateQuantizer& q) {
  if (!q.step) return State::kPlain;
  return q.read_quantized ? State::kReadQuantized : State::kReadRaw;
}

// out[n][w] = matrix[c + w][n]; lanes past the last channel get `pad`.
template <class V>
VISQ_INLINE void load_columns(const float* matrix, int64_t N, int64_t c, int lanes, float pad, float* out) {
  for (int64_t n = 0; n < N; ++n)
    for (int w = 0; w < V::W; ++w) out[n * V::W + w] = w < lanes ? matrix[(c + w) * N + n] : pad;
}

// scale[n][w] = channel[c + w] * state[n] and its inverse; 1 in the lanes past the last channel.
template <class V>
VISQ_INLINE void load_state_scales(const StateQuantizer& q, int64_t N, int64_t c, int lanes, float* scale, float* inv) {
  for (int64_t n = 0; n < N; ++n)
    for (int w = 0; w < V::W; ++w) {
      const float s = w < lanes ? q.channel[c + w] * q.state[n] : 1.0f;
      scale[n * V::W + w] = s;
      inv[n * V::W + w] = 1.0f / s;
    }
}

// Quantizes rows in place. With `slope`, multiplies it by the derivative: 1 inside the clip range, 0 outside.
template <class V>
VISQ_INLINE void quantize_rows(const Quantizer& q, int64_t N, float* rows, float* slope) {
  if (q.kind == Quantizer::kUniform) {
    const auto inv = V::set1(q.inv), scale = V::set1(q.scale), lo = V::set1(q.qmin), hi = V::set1(q.qmax);
    for (int64_t i = 0; i < N * V::W; i += V::W) {
      const auto code = V::rint(V::mul(V::load(rows + i), inv));
      V::store(rows + i, V::mul(V::max(lo, V::min(hi, code)), scale));
      if (slope) V::store(slope + i, V::keep_within(V::load(slope + i), code, lo, hi));
    }
  } else if (q.kind == Quantizer::kTable) {
    const auto lo = V::set1(q.values[0]), hi = V::set1(q.values[q.count]);
    for (int64_t i = 0; i < N * V::W; i += V::W) {
      const auto x = V::load(rows + i);
      V::store(rows + i, V::nan_from(V::lookup(q.values, q.thresholds, q.count, x), x));
      if (slope) V::store(slope + i, V::keep_within(V::load(slope + i), x, lo, hi));
    }
  }
}

template <class V>
VISQ_INLINE void abar_rows(const Quantizer& q, int64_t N, typename V::T delta, const float* A, float* rows) {
  for (int64_t i = 0; i < N * V::W; i += V::W) V::store(rows + i, V::exp(V::mul(delta, V::load(A + i))));
  quantize_rows<V>(q, N, rows, nullptr);
}

template <class V>
VISQ_INLINE void bbar_rows(const Quantizer& q, int64_t N, typename V::T delta, const float* Bt, float* rows) {
  for (int64_t n = 0; n < N; ++n) V::store(rows + n * V::W, V::mul(delta, V::set1(Bt[n])));
  quantize_rows<V>(q, N, rows, nullptr);
}

// What one channel block needs beside the sequences: rows of A and of the state's scales, scratch for abar and bbar.
struct Block {
  const float *A, *scale, *inv;
  float *abar, *bbar;
};

// One step of one block: updates h in place (to hq when quantized) and returns y.
template <class V, bool QA, bool QB, State S>
VISQ_INLINE typename V::T scan_step(const QuantArgs& q, const Block& k, int64_t N, typename V::T delta,
                                    typename V::T u, const float* Bt, const float* Ct, int64_t t, float* h) {
  if constexpr (QA) abar_rows<V>(q.abar, N, delta, k.A, k.abar);
  if constexpr (QB) bbar_rows<V>(q.bbar, N, delta, Bt, k.bbar);
  typename V::T step = V::zero(), inv_step = V::zero(), lo = V::zero(), hi = V::zero();
  if constexpr (S != State::kPlain) {
    step = V::set1(q.state.step[t]), inv_step = V::set1(1.0f / q.state.step[t]);
    lo = V::set1(q.state.qmin), hi = V::set1(q.state.qmax);
  }
  auto y = V::zero();
  for (int64_t n = 0; n < N; ++n) {
    const int64_t i = n * V::W;
    const auto abar = QA ? V::load(k.abar + i) : V::exp(V::mul(delta, V::load(k.A + i)));
    const auto bbar = QB ? V::load(k.bbar + i) : V::mul(delta, V::set1(Bt[n]));
    auto state = V::fma(abar, V::load(h + i), V::mul(bbar, u));
    const auto c = V::set1(Ct[n]);
    if constexpr (S == State::kReadRaw) y = V::fma(c, state, y);
    if constexpr (S != State::kPlain) {
      const auto code = V::rint(V::mul(state, V::mul(inv_step, V::load(k.inv + i))));
      state = V::mul(V::max(lo, V::min(hi, code)), V::mul(step, V::load(k.scale + i)));
    }
    if constexpr (S != State::kReadRaw) y = V::fma(c, state, y);
    V::store(h + i, state);
  }
  return y;
}

template <class V, bool QA, bool QB, State S>
void scan_forward_as(const ScanArgs& a, const QuantArgs& q, float* y) {
  const int64_t blocks = (a.D + V::W - 1) / V::W, size = a.N * V::W;
  auto body = [&](int64_t task) {
    const int64_t b = task / blocks, c = task % blocks * V::W;
    const int lanes = static_cast<int>(a.D - c < V::W ? a.D - c : V::W);
    float* s = scratch(6 * size);
    float *A = s + size, *scale = s + 2 * size, *inv = s + 3 * size;
    const Block k = {A, scale, inv, s + 4 * size, s + 5 * size};
    for (int64_t i = 0; i < size; ++i) s[i] = 0.0f;
    load_columns<V>(a.A, a.N, c, lanes, 0.0f, A);
    if constexpr (S != State::kPlain) load_state_scales<V>(q.state, a.N, c, lanes, scale, inv);
    for (int64_t t = 0; t < a.L; ++t) {
      const auto delta = V::load_n(a.delta.at(b, t) + c, lanes), u = V::load_n(a.u.at(b, t) + c, lanes);
      const auto out = scan_step<V, QA, QB, S>(q, k, a.N, delta, u, a.Bm.at(b, t), a.Cm.at(b, t), t, s);
      V::store_n(y + (b * a.L + t) * a.D + c, out, lanes);
    }
  };
  parallel_for(a.B * blocks, a.threads, body);
}

template <class V, bool QA, bool QB>
void scan_forward_state(const ScanArgs& a, const QuantArgs& q, float* y) {
  switch (state_mode(q.state)) {
    case State::kPlain: return scan_forward_as<V, QA, QB, State::kPlain>(a, q, y);
    case State::kReadQuantized: return scan_forward_as<V, QA, QB, State::kReadQuantized>(a, q, y);
    case State::kReadRaw: return scan_forward_as<V, QA, QB, State::kReadRaw>(a, q, y);
  }
}

template <class V>
void scan_forward(const ScanArgs& a, const QuantArgs& q, float* y) {
  if (q.abar.kind && q.bbar.kind) return scan_forward_state<V, true, true>(a, q, y);
  if (q.abar.kind) return scan_forward_state<V, true, false>(a, q, y);
  if (q.bbar.kind) return scan_forward_state<V, false, true>(a, q, y);
  return scan_forward_state<V, false, false>(a, q, y);
}

// The hidden state of every step, [B, L, D, N].
template <class V>
void scan_states(const ScanArgs& a, float* out) {
  const QuantArgs none = {};
  const int64_t blocks = (a.D + V::W - 1) / V::W, size = a.N * V::W;
  auto body = [&](int64_t task) {
    const int64_t b = task / blocks, c = task % blocks * V::W;
    const int lanes = static_cast<int>(a.D - c < V::W ? a.D - c : V::W);
    float *h = scratch(2 * size), *A = h + size;
    const Block k = {A, nullptr, nullptr, nullptr, nullptr};
    for (int64_t i = 0; i < size; ++i) h[i] = 0.0f;
    load_columns<V>(a.A, a.N, c, lanes, 0.0f, A);
    for (int64_t t = 0; t < a.L; ++t) {
      const auto delta = V::load_n(a.delta.at(b, t) + c, lanes), u = V::load_n(a.u.at(b, t) + c, lanes);
      const float* Bt = a.Bm.at(b, t);
      scan_step<V, false, false, State::kPlain>(none, k, a.N, delta, u, Bt, Bt, t, h);
      float* to = out + ((b * a.L + t) * a.D + c) * a.N;
      for (int w = 0; w < lanes; ++w)
        for (int64_t n = 0; n < a.N; ++n) to[w * a.N + n] = h[n * V::W + w];
    }
  };
  parallel_for(a.B * blocks, a.threads, body);
}

}  // namespace visq
