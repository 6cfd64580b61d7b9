// The sums behind a scale search: for each row and candidate scale, how close quantized x comes to a reference.
//
// Lanes are candidates. An element is broadcast once and meets all its candidates in registers, so no sum crosses lanes
// and no quantized tensor is written.
#pragma once
#include "ops/ops.h"
#include "run/threads.h"
#include "lanes/generic.h"

namespace visq::ops::VISQ_LEVEL {

constexpr int64_t kSimilarityRows = 16;   // rows of one task
constexpr int kSimilarityVectors = 4;     // vectors of candidates held in registers at once

// Sums over elements of one row that share their candidates, for NV vectors of candidates.
template <class V, int NV, int Metric, bool Weighted>
VISQ_INLINE void similarity_part(const float* x, const float* ref, const float* weight, int64_t count,
                                 const float* scale, const float* inv, float qmin, float qmax, float* first,
                                 float* second) {
  const auto lo = V::set1(qmin), hi = V::set1(qmax);
  typename V::T a[NV], b[NV], inverse[NV], step[NV];
  for (int j = 0; j < NV; ++j) {
    a[j] = b[j] = V::zero();
    inverse[j] = V::load(inv + j * V::W);
    step[j] = V::load(scale + j * V::W);
  }
  for (int64_t c = 0; c < count; ++c) {
    const auto xc = V::set1(x[c]), rc = V::set1(ref[c]);
    typename V::T q[NV];
    for (int j = 0; j < NV; ++j) q[j] = V::max(lo, V::min(hi, V::rint(V::mul(xc, inverse[j]))));
    for (int j = 0; j < NV; ++j) {
      if (Metric == SimilarityArgs::kCosine) {
        a[j] = V::fma(rc, q[j], a[j]);
        b[j] = V::fma(q[j], q[j], b[j]);
      } else {
        const auto error = V::fnma(q[j], step[j], rc);
        if (Metric == SimilarityArgs::kL1)
          a[j] = V::add(a[j], V::abs(error));
        else
          a[j] = V::fma(Weighted ? V::mul(error, V::set1(weight[c])) : error, error, a[j]);
      }
    }
  }
  for (int j = 0; j < NV; ++j) {
    if (Metric == SimilarityArgs::kCosine) {  // sums were over codes
      V::store(first + j * V::W, V::mul(a[j], step[j]));
      V::store(second + j * V::W, V::mul(b[j], V::mul(step[j], step[j])));
    } else {
      V::store(first + j * V::W, a[j]);
    }
  }
}

template <class V, int Metric, bool Weighted>
VISQ_INLINE void similarity_row(const float* x, const float* ref, const float* weight, int64_t count,
                                const float* scale, const float* inv, int64_t vectors, float qmin, float qmax,
                                float* first, float* second) {
  for (int64_t v = 0; v < vectors; v += kSimilarityVectors) {
    const int64_t at = v * V::W;
    const float *s = scale + at, *i = inv + at;
    float *f = first + at, *g = second + at;
    switch (vectors - v) {
      case 1: similarity_part<V, 1, Metric, Weighted>(x, ref, weight, count, s, i, qmin, qmax, f, g); break;
      case 2: similarity_part<V, 2, Metric, Weighted>(x, ref, weight, count, s, i, qmin, qmax, f, g); break;
      case 3: similarity_part<V, 3, Metric, Weighted>(x, ref, weight, count, s, i, qmin, qmax, f, g); break;
      default: similarity_part<V, 4, Metric, Weighted>(x, ref, weight, count, s, i, qmin, qmax, f, g);
    }
  }
}

template <class V, int Metric, bool Weighted>
void similarity_sums_as(const SimilarityArgs& s) {
  const int64_t vectors = (s.K + V::W - 1) / V::W, padded = vectors * V::W;
  // Candidates and their inverses, padded to whole vectors, [G][padded] each; then the columns in the order of groups.
  Buffer tables(2 * s.G * padded), order(s.C), offsets(s.G + 1);
  float *scale = tables.data(), *inv = scale + s.G * padded;
  for (int64_t i = 0; i < s.G * padded; ++i) {
    const int64_t k = i % padded;
    scale[i] = k < s.K ? s.candidates[i / padded * s.K + k] : 1.0f;
    inv[i] = 1.0f / scale[i];
  }
  auto* columns = reinterpret_cast<int32_t*>(order.data());
  auto* begin = reinterpret_cast<int32_t*>(offsets.data());
  if (!s.by_token)
    for (int64_t g = 0, at = 0; g < s.G; ++g) {
      for (int64_t c = 0; c < s.C; ++c)
        if (s.labels[c] == g) columns[at++] = static_cast<int32_t>(c);
      begin[g + 1] = static_cast<int32_t>(at);
    }

  const int64_t tasks = (s.R + kSimilarityRows - 1) / kSimilarityRows;
  auto body = [&](int64_t task) {
    float* x = scratch(3 * s.C + 2 * padded);
    float *ref = x + s.C, *weight = ref + s.C, *first = weight + s.C, *second = first + padded;
    const int64_t stop = (task + 1) * kSimilarityRows < s.R ? (task + 1) * kSimilarityRows : s.R;
    for (int64_t r = task * kSimilarityRows; r < stop; ++r) {
      const float *xr = s.x + r * s.C, *refr = s.reference + r * s.C, *wr = Weighted ? s.weight + r * s.C : nullptr;
      auto finish = [&](int64_t row) {
        for (int64_t k = 0; k < s.K; ++k) s.first[row * s.K + k] = first[k];
        if (Metric == SimilarityArgs::kCosine)
          for (int64_t k = 0; k < s.K; ++k) s.second[row * s.K + k] = second[k];
      };
      if (s.by_token) {
        const int64_t at = s.labels[r] * padded;
        similarity_row<V, Metric, Weighted>(xr, refr, wr, s.C, scale + at, inv + at, vectors, s.qmin, s.qmax, first,
                                            second);
        finish(r);
        continue;
      }
      for (int64_t i = 0; i < s.C; ++i) {
        x[i] = xr[columns[i]];
        ref[i] = refr[columns[i]];
        if (Weighted) weight[i] = wr[columns[i]];
      }
      for (int64_t g = 0; g < s.G; ++g) {
        const int64_t from = begin[g], at = g * padded;
        similarity_row<V, Metric, Weighted>(x + from, ref + from, weight + from, begin[g + 1] - from, scale + at,
                                            inv + at, vectors, s.qmin, s.qmax, first, second);
        finish(r * s.G + g);
      }
    }
  };
  parallel_for(tasks, s.threads, body);
}

template <class V>
void similarity_sums(const SimilarityArgs& s) {
  if (s.metric == SimilarityArgs::kCosine) return similarity_sums_as<V, SimilarityArgs::kCosine, false>(s);
  if (s.metric == SimilarityArgs::kL1) return similarity_sums_as<V, SimilarityArgs::kL1, false>(s);
  if (s.weight) return similarity_sums_as<V, SimilarityArgs::kL2, true>(s);
  return similarity_sums_as<V, SimilarityArgs::kL2, false>(s);
}

}  // namespace visq::ops::VISQ_LEVEL
