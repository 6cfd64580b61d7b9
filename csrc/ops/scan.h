// Forward selective scan, plain or with quantized abar, bbar and state.
//
//   abar = Qa(exp(delta A)),  bbar = Qb(delta B),  h = abar hq_prev + bbar u,  hq = Qh(h),  y = sum_n C (hq or h)
//
// A task is one image and one block of W channels. Lanes are channels, and every array of rows below is [N][W].
#pragma once
#include "ops/ops.h"
#include "run/threads.h"
#include "lanes/generic.h"

namespace visq::ops::VISQ_LEVEL {

constexpr int kTogether = 4;  // states advanced in lockstep

enum class State { kPlain, kReadQuantized, kReadRaw };

VISQ_INLINE State state_mode(const StateCodec& q) {
  if (!q.step) return State::kPlain;
  return q.read_quantized ? State::kReadQuantized : State::kReadRaw;
}

// out[n][w] = factor * A[c + w][n]. Lanes beyond the last channel are zero.
template <class V>
VISQ_INLINE void load_A(const float* A, int64_t N, int64_t c, int lanes, float factor, float* out) {
  for (int64_t n = 0; n < N; ++n)
    for (int w = 0; w < V::W; ++w) out[n * V::W + w] = w < lanes ? factor * A[(c + w) * N + n] : 0.0f;
}

// scale[n][w] = channel[c + w] * state[n], and its inverse. Lanes beyond the last channel are one.
template <class V>
VISQ_INLINE void load_state_scales(const StateCodec& q, int64_t N, int64_t c, int lanes, float* scale, float* inv) {
  for (int64_t n = 0; n < N; ++n)
    for (int w = 0; w < V::W; ++w) {
      const float s = w < lanes ? q.channel[c + w] * q.state[n] : 1.0f;
      scale[n * V::W + w] = s;
      inv[n * V::W + w] = 1.0f / s;
    }
}

// Rounds rows in place, and multiplies `slope` (if given) by the derivative: 1 inside the clip range, 0 outside.
template <class V>
VISQ_INLINE void quantize_rows(const FactorCodec& q, int64_t N, float* rows, float* slope) {
  if (q.kind == FactorCodec::kUniform) {
    const auto inv = V::set1(q.inv), scale = V::set1(q.scale), lo = V::set1(q.qmin), hi = V::set1(q.qmax);
    for (int64_t i = 0; i < N * V::W; i += V::W) {
      const auto code = V::rint(V::mul(V::load(rows + i), inv));
      V::store(rows + i, V::mul(V::max(lo, V::min(hi, code)), scale));
      if (slope) V::store(slope + i, V::keep_within(V::load(slope + i), code, lo, hi));
    }
  } else if (q.kind == FactorCodec::kTable) {
    const auto lo = V::set1(q.values[0]), hi = V::set1(q.values[q.count]);
    const typename V::Lookup nearest{q.values, q.thresholds, q.count};
    for (int64_t i = 0; i < N * V::W; i += V::W) {
      const auto x = V::load(rows + i);
      V::store(rows + i, V::nan_from(nearest(x), x));
      if (slope) V::store(slope + i, V::keep_within(V::load(slope + i), x, lo, hi));
    }
  }
}

// rows[n] = exp(delta A[n]), for U consecutive n.
template <class V, int U>
VISQ_INLINE void exp_rows_part(typename V::T delta, const float* A, float* rows) {
  typename V::T x[U];
  for (int j = 0; j < U; ++j) x[j] = V::mul(delta, V::load(A + j * V::W));
  V::template exp2<U>(x);
  for (int j = 0; j < U; ++j) V::store(rows + j * V::W, x[j]);
}

template <class V>
VISQ_INLINE void exp_rows(int64_t N, typename V::T delta, const float* A, float* rows) {
  int64_t n = 0;
  for (; n + kTogether <= N; n += kTogether) exp_rows_part<V, kTogether>(delta, A + n * V::W, rows + n * V::W);
  for (; n < N; ++n) exp_rows_part<V, 1>(delta, A + n * V::W, rows + n * V::W);
}

template <class V>
VISQ_INLINE void abar_rows(const FactorCodec& q, int64_t N, typename V::T delta, const float* A, float* rows) {
  exp_rows<V>(N, delta, A, rows);
  quantize_rows<V>(q, N, rows, nullptr);
}

// rows[n] = bbar[n] u, where bbar = delta B may be rounded.
template <class V>
VISQ_INLINE void input_rows(const FactorCodec& q, int64_t N, typename V::T delta, typename V::T u, const float* Bt,
                            float* rows) {
  const auto delta_u = V::mul(delta, u);
  for (int64_t n = 0; n < N; ++n) V::store(rows + n * V::W, V::mul(q.kind ? delta : delta_u, V::set1(Bt[n])));
  if (!q.kind) return;
  quantize_rows<V>(q, N, rows, nullptr);
  for (int64_t i = 0; i < N * V::W; i += V::W) V::store(rows + i, V::mul(V::load(rows + i), u));
}

// What a block of channels has beside the sequences: rows of log2(e) A, of which exp(delta A) is one exp2; the state's
// scales; and scratch for abar and bbar u.
struct Block {
  const float *A, *scale, *inv;
  float *abar, *input;  // the backward keeps bbar itself in `input`
};

// What the states of one step have in common.
template <class V>
struct StepInputs {
  typename V::T delta, delta_u, step, inv_step, lo, hi;
  const float *Bt, *Ct;
};

// Advances U consecutive states from n on, in place (to hq where they are quantized), and adds their share to y.
template <class V, int U, bool QA, bool QB, State S>
VISQ_INLINE void scan_part(const Block& k, const StepInputs<V>& in, int64_t n, float* h, typename V::T* y) {
  const int64_t W = V::W, i = n * W;
  typename V::T abar[U], state[U];
  for (int j = 0; j < U; ++j) abar[j] = QA ? V::load(k.abar + i + j * W) : V::mul(in.delta, V::load(k.A + i + j * W));
  if constexpr (!QA) V::template exp2<U>(abar);
  for (int j = 0; j < U; ++j) {
    const auto input = QB ? V::load(k.input + i + j * W) : V::mul(in.delta_u, V::set1(in.Bt[n + j]));
    state[j] = V::fma(abar[j], V::load(h + i + j * W), input);
  }
  if constexpr (S == State::kReadRaw)
    for (int j = 0; j < U; ++j) *y = V::fma(V::set1(in.Ct[n + j]), state[j], *y);
  if constexpr (S != State::kPlain)
    for (int j = 0; j < U; ++j) {
      const auto code = V::rint(V::mul(state[j], V::mul(in.inv_step, V::load(k.inv + i + j * W))));
      state[j] = V::mul(V::max(in.lo, V::min(in.hi, code)), V::mul(in.step, V::load(k.scale + i + j * W)));
    }
  if constexpr (S != State::kReadRaw)
    for (int j = 0; j < U; ++j) *y = V::fma(V::set1(in.Ct[n + j]), state[j], *y);
  for (int j = 0; j < U; ++j) V::store(h + i + j * W, state[j]);
}

// Advances one block by one step, in place, and returns y.
template <class V, bool QA, bool QB, State S>
VISQ_INLINE typename V::T scan_step(const QuantArgs& q, const Block& k, int64_t N, typename V::T delta,
                                    typename V::T u, const float* Bt, const float* Ct, int64_t t, float* h) {
  if constexpr (QA) abar_rows<V>(q.abar, N, delta, k.A, k.abar);
  if constexpr (QB) input_rows<V>(q.bbar, N, delta, u, Bt, k.input);
  StepInputs<V> in = {delta, V::mul(delta, u), V::zero(), V::zero(), V::zero(), V::zero(), Bt, Ct};
  if constexpr (S != State::kPlain) {
    in.step = V::set1(q.state.step[t]), in.inv_step = V::set1(1.0f / q.state.step[t]);
    in.lo = V::set1(q.state.qmin), in.hi = V::set1(q.state.qmax);
  }
  auto y = V::zero();
  int64_t n = 0;
  for (; n + kTogether <= N; n += kTogether) scan_part<V, kTogether, QA, QB, S>(k, in, n, h, &y);
  for (; n < N; ++n) scan_part<V, 1, QA, QB, S>(k, in, n, h, &y);
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
    load_A<V>(a.A, a.N, c, lanes, kLog2e, A);
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

// Writes the hidden state of every step, [B, L, D, N].
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
    load_A<V>(a.A, a.N, c, lanes, kLog2e, A);
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

}  // namespace visq::ops::VISQ_LEVEL
