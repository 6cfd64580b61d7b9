// Greedy search of the state's scales, one group of steps after the other. Every candidate runs the recurrence over the
// group, from the history that is quantized already, and one step further. The best mean cosine to y_ref wins.
//
// exp(delta A) is computed once a step for all candidates. A task is a slice of an image's channel blocks; its dot products
// are doubles, which are added in the order of tasks.
#pragma once
#include <cmath>

#include "ops/scan.h"

namespace visq::ops::VISQ_LEVEL {

// A group of steps [begin, end). Factors are also needed for the step after it, if there is one: `rows` in all.
struct StepGroup {
  int64_t begin, end, rows;
};

template <class V>
struct SearchScratch {
  float *A, *scale, *inv;  // [N][W]
  float *first, *state;    // [N][W]: h of the first step, and a candidate's running hq
  float *abar, *input;     // [rows][N][W]: Qa(exp(delta A)) and bbar u

  SearchScratch(float* s, int64_t size, int64_t rows)
      : A(s), scale(s + size), inv(s + 2 * size), first(s + 3 * size), state(s + 4 * size), abar(s + 5 * size),
        input(s + (5 + rows) * size) {}
  static size_t floats(int64_t size, int64_t rows) { return (5 + 2 * rows) * size; }
};

// Computes the factors of every step of the group, for one image and one block.
template <class V>
VISQ_INLINE void prepare_group(const ScanArgs& a, const QuantArgs& q, const SearchScratch<V>& s, const StepGroup& g,
                               int64_t b, int64_t c, int lanes) {
  const int64_t size = a.N * V::W;
  load_A<V>(a.A, a.N, c, lanes, kLog2e, s.A);
  load_state_scales<V>(q.state, a.N, c, lanes, s.scale, s.inv);
  for (int64_t row = 0; row < g.rows; ++row) {
    const int64_t t = g.begin + row;
    const auto delta = V::load_n(a.delta.at(b, t) + c, lanes), u = V::load_n(a.u.at(b, t) + c, lanes);
    abar_rows<V>(q.abar, a.N, delta, s.A, s.abar + row * size);
    input_rows<V>(q.bbar, a.N, delta, u, a.Bm.at(b, t), s.input + row * size);
  }
}

// Advances U consecutive states by one step: First takes h from s.first, the others compute abar hq + input. Quantizes them,
// but not in the step after the group (Last), and adds their share to y.
template <class V, int U, bool First, bool Last, bool ReadQuantized>
VISQ_INLINE void search_part(const SearchScratch<V>& s, const float* abar, const float* input, const float* Ct,
                             typename V::T step, typename V::T inv_step, typename V::T lo, typename V::T hi, int64_t n,
                             typename V::T* y) {
  const int64_t W = V::W, i = n * W;
  typename V::T h[U];
  for (int j = 0; j < U; ++j) {
    const int64_t at = i + j * W;
    h[j] = First ? V::load(s.first + at) : V::fma(V::load(abar + at), V::load(s.state + at), V::load(input + at));
  }
  if constexpr (Last || !ReadQuantized)
    for (int j = 0; j < U; ++j) y[j] = V::fma(V::set1(Ct[n + j]), h[j], y[j]);
  if constexpr (Last) return;
  for (int j = 0; j < U; ++j) {
    const int64_t at = i + j * W;
    const auto code = V::rint(V::mul(h[j], V::mul(inv_step, V::load(s.inv + at))));
    h[j] = V::mul(V::max(lo, V::min(hi, code)), V::mul(step, V::load(s.scale + at)));
    V::store(s.state + at, h[j]);
  }
  if constexpr (ReadQuantized)
    for (int j = 0; j < U; ++j) y[j] = V::fma(V::set1(Ct[n + j]), h[j], y[j]);
}

template <class V, bool First, bool Last, bool ReadQuantized>
VISQ_INLINE typename V::T search_step(const SearchScratch<V>& s, int64_t N, int64_t row, const float* Ct, float step,
                                      float qmin, float qmax) {
  const float *abar = s.abar + row * N * V::W, *input = s.input + row * N * V::W;
  const auto st = V::set1(step), ist = V::set1(1.0f / step), lo = V::set1(qmin), hi = V::set1(qmax);
  typename V::T y[kTogether];
  for (int j = 0; j < kTogether; ++j) y[j] = V::zero();
  int64_t n = 0;
  for (; n + kTogether <= N; n += kTogether)
    search_part<V, kTogether, First, Last, ReadQuantized>(s, abar, input, Ct, st, ist, lo, hi, n, y);
  for (; n < N; ++n) search_part<V, 1, First, Last, ReadQuantized>(s, abar, input, Ct, st, ist, lo, hi, n, y);
  return V::add(V::add(y[0], y[1]), V::add(y[2], y[3]));
}

template <class V>
VISQ_INLINE void first_states(const SearchScratch<V>& s, int64_t size, const float* history) {
  for (int64_t i = 0; i < size; i += V::W)
    V::store(s.first + i, V::fma(V::load(s.abar + i), V::load(history + i), V::load(s.input + i)));
}

// Adds one block of one image to the sums of all candidates: sums [rows][K][2] (y . y_ref and y . y), ref [rows]
// (y_ref . y_ref).
template <class V, bool ReadQuantized>
void score_block(const StateSearchArgs& p, const SearchScratch<V>& s, const StepGroup& g, int64_t b, int64_t c,
                 int lanes, double* sums, double* ref) {
  const ScanArgs& a = p.scan;
  const StateCodec& q = p.quant.state;
  auto add = [&](int64_t row, int64_t k, typename V::T y) {
    const auto target = V::load_n(p.y_ref.at(b, g.begin + row) + c, lanes);
    sums[(row * p.K + k) * 2] += V::hsum(V::mul(y, target));
    sums[(row * p.K + k) * 2 + 1] += V::hsum(V::mul(y, y));
  };
  for (int64_t row = 0; row < g.rows; ++row) {
    const auto target = V::load_n(p.y_ref.at(b, g.begin + row) + c, lanes);
    ref[row] += V::hsum(V::mul(target, target));
  }
  for (int64_t k = 0; k < p.K; ++k)
    for (int64_t row = 0; row < g.rows; ++row) {
      const int64_t t = g.begin + row;
      const float step = q.step[t] * p.candidates[k], *Ct = a.Cm.at(b, t);
      if (row == 0)
        add(row, k, search_step<V, true, false, ReadQuantized>(s, a.N, row, Ct, step, q.qmin, q.qmax));
      else if (t < g.end)
        add(row, k, search_step<V, false, false, ReadQuantized>(s, a.N, row, Ct, step, q.qmin, q.qmax));
      else
        add(row, k, search_step<V, false, true, ReadQuantized>(s, a.N, row, Ct, step, q.qmin, q.qmax));
    }
}

// Returns the candidate with the best mean cosine over images and rows [from, rows); of equal ones the closest to 1, then
// the first. Returns K where every score is NaN.
VISQ_INLINE int64_t best_candidate(const StateSearchArgs& p, const double* sums, const double* refs, int64_t slices,
                                   int64_t from, int64_t rows) {
  int64_t best = p.K;
  double best_score = 0.0;
  for (int64_t k = 0; k < p.K; ++k) {
    double score = 0.0;
    for (int64_t b = 0; b < p.scan.B; ++b)
      for (int64_t row = from; row < rows; ++row) {
        double dot = 0.0, yy = 0.0, rr = 0.0;
        for (int64_t slice = b * slices; slice < (b + 1) * slices; ++slice) {
          dot += sums[((slice * rows + row) * p.K + k) * 2];
          yy += sums[((slice * rows + row) * p.K + k) * 2 + 1];
          rr += refs[slice * rows + row];
        }
        const double norm = __builtin_sqrt(yy * rr);
        score += norm == 0.0 ? 0.0 : dot / norm;
      }
    if (score != score) continue;
    const float distance = __builtin_fabsf(p.candidates[k] - 1.0f);
    if (best == p.K || score > best_score ||
        (score == best_score && distance < __builtin_fabsf(p.candidates[best] - 1.0f))) {
      best = k;
      best_score = score;
    }
  }
  return best;
}

template <class V, bool ReadQuantized>
void search_state_scales_as(const StateSearchArgs& p) {
  const ScanArgs& a = p.scan;
  const int64_t blocks = (a.D + V::W - 1) / V::W, size = a.N * V::W;
  const int64_t wanted = a.B < 16 ? (16 + a.B - 1) / a.B : 1, slices = blocks < wanted ? blocks : wanted;
  Buffer history(a.B * blocks * size);  // hq after the last finished group

  for (int64_t begin = 0, end; begin < a.L; begin = end) {
    for (end = begin + 1; end < a.L && p.groups[end] == p.groups[begin];) ++end;
    const StepGroup g = {begin, end, end - begin + (end < a.L ? 1 : 0)};
    Buffer sum_memory(a.B * slices * g.rows * p.K * 2 * 2), ref_memory(a.B * slices * g.rows * 2);
    auto* sums = reinterpret_cast<double*>(sum_memory.data());
    auto* refs = reinterpret_cast<double*>(ref_memory.data());

    auto each_block = [&](int64_t task, auto&& visit) {
      const SearchScratch<V> s(scratch(SearchScratch<V>::floats(size, g.rows)), size, g.rows);
      const int64_t b = task / slices, slice = task % slices;
      for (int64_t block = slice * blocks / slices; block < (slice + 1) * blocks / slices; ++block) {
        const int64_t c = block * V::W;
        const int lanes = static_cast<int>(a.D - c < V::W ? a.D - c : V::W);
        prepare_group<V>(a, p.quant, s, g, b, c, lanes);
        float* past = history.data() + (b * blocks + block) * size;
        first_states<V>(s, size, past);
        visit(s, b, c, lanes, past);
      }
    };
    auto score = [&](int64_t task) {
      each_block(task, [&](const SearchScratch<V>& s, int64_t b, int64_t c, int lanes, float*) {
        score_block<V, ReadQuantized>(p, s, g, b, c, lanes, sums + task * g.rows * p.K * 2, refs + task * g.rows);
      });
    };
    parallel_for(a.B * slices, a.threads, score);

    // The y of the first step reads the candidate only when y reads the quantized state.
    const int64_t best = best_candidate(p, sums, refs, slices, ReadQuantized ? 0 : 1, g.rows);
    for (int64_t t = begin; t < end; ++t)
      p.step[t] = best < p.K ? p.quant.state.step[t] * p.candidates[best] : __builtin_nanf("");

    auto advance = [&](int64_t task) {
      each_block(task, [&](const SearchScratch<V>& s, int64_t b, int64_t, int, float* past) {
        const StateCodec& q = p.quant.state;
        for (int64_t t = begin; t < end; ++t) {
          const float* Ct = a.Cm.at(b, t);
          if (t == begin)
            search_step<V, true, false, ReadQuantized>(s, a.N, 0, Ct, p.step[t], q.qmin, q.qmax);
          else
            search_step<V, false, false, ReadQuantized>(s, a.N, t - begin, Ct, p.step[t], q.qmin, q.qmax);
        }
        for (int64_t i = 0; i < size; ++i) past[i] = s.state[i];
      });
    };
    if (end < a.L) parallel_for(a.B * slices, a.threads, advance);
  }
}

template <class V>
void search_state_scales(const StateSearchArgs& p) {
  p.quant.state.read_quantized ? search_state_scales_as<V, true>(p) : search_state_scales_as<V, false>(p);
}

}  // namespace visq::ops::VISQ_LEVEL
