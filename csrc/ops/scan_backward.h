// Backward of the scan, plain or quantized. It is straight-through: the derivative of a rounding is 1 inside the clip range
// and 0 outside. States are recomputed, in one pass where the sequence is short, else chunk by chunk from checkpoints.
//
// A task is a group of images and a slice of channel blocks, whatever the number of threads. Sums over images (grad A) and
// over channels (grad B, grad C) are kept a task and added in the order of tasks at the end.
#pragma once
#include "ops/scan.h"

namespace visq::ops::VISQ_LEVEL {

constexpr int64_t kChunk = 256;       // steps whose states are held at once
constexpr int64_t kImageGroups = 16;  // at most this many partial sums over images
constexpr int64_t kTasks = 64;        // tasks aimed for

// out[n] += sum over lanes of rows[n]
template <class V>
VISQ_INLINE void add_lane_sums(const float* rows, int64_t N, float* out) {
  int64_t n = 0;
  for (; n + 4 <= N; n += 4) {
    const typename V::T part[4] = {V::load(rows + n * V::W), V::load(rows + (n + 1) * V::W),
                                   V::load(rows + (n + 2) * V::W), V::load(rows + (n + 3) * V::W)};
    V::add_hsum4(part, out + n);
  }
  for (; n < N; ++n) out[n] += V::hsum(V::load(rows + n * V::W));
}

// States and factors of one chunk's steps, each [steps][N][W]. `state` has one row more in front: the state before.
struct Trace {
  float *state;  // hq
  float *raw;    // h before it is rounded (one row into `state` where nothing rounds it)
  float *abar;   // Qa(exp(delta A))
  float *slope;  // d abar / d (delta A)
};

template <class V>
VISQ_INLINE void record_step(const ScanArgs& a, const QuantArgs& q, const Block& k, const Trace& r, int64_t b,
                             int64_t t, int64_t c, int lanes, int64_t at) {
  const int64_t size = a.N * V::W;
  const auto delta = V::load_n(a.delta.at(b, t) + c, lanes), u = V::load_n(a.u.at(b, t) + c, lanes);
  float *abar = r.abar + at * size, *slope = r.slope + at * size, *raw = r.raw + at * size;
  const float* before = r.state + at * size;
  float* after = r.state + (at + 1) * size;
  exp_rows<V>(a.N, delta, k.A, abar);
  if (q.abar.kind) {
    for (int64_t i = 0; i < size; i += V::W) V::store(slope + i, V::load(abar + i));
    quantize_rows<V>(q.abar, a.N, abar, slope);
  }
  input_rows<V>(q.bbar, a.N, delta, u, a.Bm.at(b, t), k.input);
  for (int64_t i = 0; i < size; i += V::W)
    V::store(raw + i, V::fma(V::load(abar + i), V::load(before + i), V::load(k.input + i)));
  if (!q.state.step) return;
  const auto step = V::set1(q.state.step[t]), inv_step = V::set1(1.0f / q.state.step[t]);
  const auto lo = V::set1(q.state.qmin), hi = V::set1(q.state.qmax);
  for (int64_t i = 0; i < size; i += V::W) {
    const auto code = V::rint(V::mul(V::load(raw + i), V::mul(inv_step, V::load(k.inv + i))));
    V::store(after + i, V::mul(V::max(lo, V::min(hi, code)), V::mul(step, V::load(k.scale + i))));
  }
}

// What one step of the backward reads and adds to.
struct StepGrads {
  float *carry;           // d loss / d hq_t from later steps, [N][W]; becomes that of step t - 1
  float *A;               // [N][W], added to
  float *lanes_B, *lanes_C;  // [N][W], scratch before the sum over channels
  float *slope_B;         // [N][W], scratch
  const float *plain_A;   // [N][W]; the block's own A carries a factor log2(e)
};

template <class V, State S>
VISQ_INLINE void backward_step(const ScanArgs& a, const QuantArgs& q, const Block& k, const Trace& r,
                               const StepGrads& g, const Rows& gy, const ScanGrads& out, int64_t b, int64_t t,
                               int64_t c, int lanes, int64_t at) {
  const int64_t size = a.N * V::W;
  const auto delta = V::load_n(a.delta.at(b, t) + c, lanes), u = V::load_n(a.u.at(b, t) + c, lanes);
  const auto gyt = V::load_n(gy.at(b, t) + c, lanes);
  const float *Bt = a.Bm.at(b, t), *Ct = a.Cm.at(b, t);
  const float *before = r.state + at * size, *after = before + size, *raw = r.raw + at * size;
  const float *abar = r.abar + at * size, *slope = r.slope + at * size;
  if (q.bbar.kind) {
    for (int64_t n = 0; n < a.N; ++n) {
      V::store(k.input + n * V::W, V::mul(delta, V::set1(Bt[n])));
      V::store(g.slope_B + n * V::W, V::set1(1.0f));
    }
    quantize_rows<V>(q.bbar, a.N, k.input, g.slope_B);
  }
  typename V::T inv_step = V::zero(), lo = V::zero(), hi = V::zero();
  if constexpr (S != State::kPlain) {
    inv_step = V::set1(1.0f / q.state.step[t]);
    lo = V::set1(q.state.qmin), hi = V::set1(q.state.qmax);
  }
  auto gu = V::zero(), gdelta = V::zero();
  for (int64_t n = 0; n < a.N; ++n) {
    const int64_t i = n * V::W;
    const auto Bn = V::set1(Bt[n]), read = V::mul(gyt, V::set1(Ct[n]));
    auto gh = V::load(g.carry + i);
    if constexpr (S != State::kReadRaw) gh = V::add(gh, read);
    if constexpr (S != State::kPlain) {
      const auto code = V::rint(V::mul(V::load(raw + i), V::mul(inv_step, V::load(k.inv + i))));
      gh = V::keep_within(gh, code, lo, hi);
    }
    if constexpr (S == State::kReadRaw) gh = V::add(gh, read);
    V::store(g.lanes_C + i, V::mul(gyt, V::load((S == State::kReadRaw ? raw : after) + i)));
    auto gb = V::mul(gh, u);
    auto bbar = V::mul(delta, Bn);
    if (q.bbar.kind) {
      gb = V::mul(gb, V::load(g.slope_B + i));
      bbar = V::load(k.input + i);
    }
    gu = V::fma(gh, bbar, gu);
    gdelta = V::fma(gb, Bn, gdelta);
    V::store(g.lanes_B + i, V::mul(gb, delta));
    const auto gx = V::mul(V::mul(gh, V::load(before + i)), V::load(slope + i));
    gdelta = V::fma(gx, V::load(g.plain_A + i), gdelta);
    V::store(g.A + i, V::fma(gx, delta, V::load(g.A + i)));
    V::store(g.carry + i, V::mul(V::load(abar + i), gh));
  }
  V::store_n(out.u + (b * a.L + t) * a.D + c, gu, lanes);
  V::store_n(out.delta + (b * a.L + t) * a.D + c, gdelta, lanes);
}

template <class V, State S>
void scan_backward_as(const ScanArgs& a, const QuantArgs& q, const Rows& gy, const ScanGrads& out) {
  const int64_t blocks = (a.D + V::W - 1) / V::W, size = a.N * V::W;
  const int64_t chunk = a.L < kChunk ? a.L : kChunk, chunks = (a.L + chunk - 1) / chunk;
  const int64_t images = a.B < kImageGroups ? a.B : kImageGroups;
  const int64_t wanted = kTasks / images, slices = blocks < wanted ? blocks : wanted;
  Buffer sum_A(images * a.D * a.N), sum_B(a.B * slices * a.L * a.N), sum_C(a.B * slices * a.L * a.N);

  auto body = [&](int64_t task) {
    const int64_t image = task / slices, slice = task % slices;
    const int64_t traced = (chunk + 1) * size;
    float* s = scratch((11 + chunks) * size + 4 * traced);
    float *A = s, *scale = s + size, *inv = s + 2 * size, *slope_B = s + 9 * size, *plain_A = s + 10 * size;
    const Block k = {A, scale, inv, s + 3 * size, s + 4 * size};
    const StepGrads g = {s + 5 * size, s + 6 * size, s + 7 * size, s + 8 * size, slope_B, plain_A};
    float *checkpoints = s + 11 * size, *trace = checkpoints + chunks * size;
    Trace r = {trace, trace + size, trace + traced, trace + traced};
    if (S != State::kPlain) r.raw = trace + 2 * traced;
    if (q.abar.kind) r.slope = trace + 3 * traced;

    for (int64_t block = slice * blocks / slices; block < (slice + 1) * blocks / slices; ++block) {
      const int64_t c = block * V::W;
      const int lanes = static_cast<int>(a.D - c < V::W ? a.D - c : V::W);
      load_A<V>(a.A, a.N, c, lanes, kLog2e, A);
      load_A<V>(a.A, a.N, c, lanes, 1.0f, plain_A);
      if (S != State::kPlain) load_state_scales<V>(q.state, a.N, c, lanes, scale, inv);
      for (int64_t i = 0; i < size; ++i) g.A[i] = 0.0f;

      for (int64_t b = image * a.B / images; b < (image + 1) * a.B / images; ++b) {
        for (int64_t i = 0; i < size; ++i) g.carry[i] = r.state[i] = 0.0f;
        for (int64_t piece = 0; piece < chunks; ++piece) {
          for (int64_t i = 0; i < size; ++i) checkpoints[piece * size + i] = r.state[i];
          const int64_t t0 = piece * chunk, steps = t0 + chunk < a.L ? chunk : a.L - t0;
          for (int64_t at = 0; at < steps; ++at) record_step<V>(a, q, k, r, b, t0 + at, c, lanes, at);
          if (piece + 1 < chunks)
            for (int64_t i = 0; i < size; ++i) r.state[i] = r.state[steps * size + i];
        }
        for (int64_t piece = chunks - 1; piece >= 0; --piece) {
          const int64_t t0 = piece * chunk, steps = t0 + chunk < a.L ? chunk : a.L - t0;
          if (piece + 1 < chunks) {
            for (int64_t i = 0; i < size; ++i) r.state[i] = checkpoints[piece * size + i];
            for (int64_t at = 0; at < steps; ++at) record_step<V>(a, q, k, r, b, t0 + at, c, lanes, at);
          }
          for (int64_t at = steps - 1; at >= 0; --at) {
            const int64_t t = t0 + at, row = ((b * slices + slice) * a.L + t) * a.N;
            backward_step<V, S>(a, q, k, r, g, gy, out, b, t, c, lanes, at);
            add_lane_sums<V>(g.lanes_B, a.N, sum_B.data() + row);
            add_lane_sums<V>(g.lanes_C, a.N, sum_C.data() + row);
          }
        }
      }
      float* to = sum_A.data() + (image * a.D + c) * a.N;
      for (int w = 0; w < lanes; ++w)
        for (int64_t n = 0; n < a.N; ++n) to[w * a.N + n] = g.A[n * V::W + w];
    }
  };
  parallel_for(images * slices, a.threads, body);

  for (int64_t i = 0; i < a.D * a.N; ++i) {
    float sum = 0.0f;
    for (int64_t image = 0; image < images; ++image) sum += sum_A.data()[image * a.D * a.N + i];
    out.A[i] = sum;
  }
  auto add_slices = [&](int64_t b) {
    const int64_t rows = a.L * a.N;
    for (int64_t i = 0; i < rows; ++i) {
      float sum_of_B = 0.0f, sum_of_C = 0.0f;
      for (int64_t slice = 0; slice < slices; ++slice) {
        sum_of_B += sum_B.data()[(b * slices + slice) * rows + i];
        sum_of_C += sum_C.data()[(b * slices + slice) * rows + i];
      }
      out.Bm[b * rows + i] = sum_of_B;
      out.Cm[b * rows + i] = sum_of_C;
    }
  };
  parallel_for(a.B, a.threads, add_slices);
}

template <class V>
void scan_backward(const ScanArgs& a, const QuantArgs& q, Rows gy, const ScanGrads& out) {
  switch (state_mode(q.state)) {
    case State::kPlain: return scan_backward_as<V, State::kPlain>(a, q, gy, out);
    case State::kReadQuantized: return scan_backward_as<V, State::kReadQuantized>(a, q, gy, out);
    case State::kReadRaw: return scan_backward_as<V, State::kReadRaw>(a, q, gy, out);
  }
}

}  // namespace visq::ops::VISQ_LEVEL
