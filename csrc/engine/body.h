// What each source is, and the row instructions.
#pragma once
#include "conv.h"
#include "conv2d.h"
#include "elements.h"
#include "linear.h"
#include "maps.h"

namespace visq::engine {

template <class V>
View concat_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width);
  for (int64_t i = 0; i < count; ++i) {
    int64_t row = first + i;
    const Part* part = op.parts;
    while (row >= part->count) row -= part++->count;
    float* out = f.scratch + i * stride;
    const float* from = part->tensor < 0 ? part->constant
                                         : float_row<V>(f, f.tensors[part->tensor], part->first + row, out);
    if (from != out) __builtin_memcpy(out, from, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

template <class V>
View source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  switch (op.kind) {
    case Operation::kPatches: return patches_source<V>(op, f, first, count);
    case Operation::kConcat: return concat_source<V>(op, f, first, count);
    case Operation::kIntLinear:
    case Operation::kFloatLinear: return linear_source<V>(op, f, first, count);
    case Operation::kIntConv:
    case Operation::kFloatConv: return conv_source<V>(op, f, first, count);
    case Operation::kIntConv2d:
    case Operation::kFloatConv2d: return conv2d_source<V>(op, f, first, count);
    case Operation::kTranspose: return transpose_source<V>(op, f, first, count);
    case Operation::kMean: return mean_source<V>(op, f);
    case Operation::kFixedScan:
    case Operation::kFusedScan:
    case Operation::kFloatScan: {
      const Tensor& y = f.tensors[op.y];
      if (y.codes) break;
      return {f.row<float>(y, first), y.stride};
    }
    case Operation::kRows: break;
  }
  return {f.scratch, 0};
}

// Sum over a row in 16 lanes, then lanes in halves.
template <class V, class F>
VISQ_INLINE float row_sum(int64_t width, F value) {
  typename V::T sums[16 / V::W];
  for (auto& sum : sums) sum = V::zero();
  int64_t c = 0;
  for (; c + 16 <= width; c += 16)
    for (int j = 0; j < 16 / V::W; ++j) sums[j] = V::add(sums[j], value(c + j * V::W, V::W));
  for (int j = 0; c < width; ++j, c += V::W)
    sums[j] = V::add(sums[j], value(c, static_cast<int>(width - c < V::W ? width - c : V::W)));
  alignas(64) float lanes[16];
  for (int j = 0; j < 16 / V::W; ++j) V::store(lanes + j * V::W, sums[j]);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class V>
VISQ_INLINE void rms_norm(const Step& s, const float* x, float* out) {
  const float sum = row_sum<V>(s.width, [&](int64_t c, int n) {
    const auto v = V::load_n(x + c, n);
    return V::mul(v, v);
  });
  const float mean = sum * s.value;  // value: 1 / width
  const auto inverse = V::div(V::set1(1.0f), Lanes<V>::sqrt(V::set1(mean + s.eps)));
  for (int64_t c = 0; c < s.width; c += V::W)
    V::store(out + c, V::mul(V::mul(V::load(x + c), inverse), V::load(s.constant + c)));
}

template <class V>
VISQ_INLINE void layer_norm(const Step& s, const float* x, float* out) {
  const float sum = row_sum<V>(s.width, [&](int64_t c, int n) { return V::load_n(x + c, n); });
  const float width = static_cast<float>(s.width);
  const auto mean = V::set1(sum / width);
  for (int64_t c = 0; c < s.width; c += V::W) V::store(out + c, V::sub(V::load(x + c), mean));
  const float squares = row_sum<V>(s.width, [&](int64_t c, int n) {
    const auto v = V::load_n(out + c, n);
    return V::mul(v, v);
  });
  const auto inverse = V::div(V::set1(1.0f), Lanes<V>::sqrt(V::set1(squares / width + s.eps)));
  for (int64_t c = 0; c < s.width; c += V::W) {
    const auto scaled = V::mul(V::mul(V::load(out + c), inverse), V::load(s.constant + c));
    V::store(out + c, V::add(scaled, V::load(s.bias + c)));
  }
}

// visq.runtime.arithmetic.rotate: sums and differences, then every run of K channels by the matrix. `x` is the first of
// two rows of `stride` floats, behind which there is room for the products. Whole vectors are written: what goes beyond
// a run is overwritten by the next, or beyond the row.
template <class V>
void spread_row(const FloatLinear& p, int64_t width, float* x, int64_t stride, float* out) {
  float *from = x, *to = x + stride, *products = x + 2 * stride;
  for (int64_t distance = p.K; distance < width; distance *= 2) {
    for (int64_t base = 0; base < width; base += 2 * distance) {
      const float *first = from + base, *second = first + distance;
      float *sum = to + base, *difference = sum + distance;
      for (int64_t c = 0; c < distance; c += V::W)
        V::store(sum + c, V::add(V::load(first + c), V::load(second + c)));
      for (int64_t c = 0; c < distance; c += V::W)
        V::store(difference + c, V::sub(V::load(first + c), V::load(second + c)));
    }
    float* next = from;
    from = to, to = next;
  }
  const int64_t runs = width / p.K;
  float_linear<V>(p, from, p.K, runs, products, p.N);
  for (int64_t i = 0; i < runs; ++i) __builtin_memcpy(out + i * p.K, products + i * p.N, p.K * sizeof(float));
}

template <class V>
void rotate(const Step& s, const Rows& rows) {
  const int64_t stride = padded(s.width);
  float *out = rows.result(s, 0), *scratch = rows.room + (s.slot + stride) * rows.room_rows;
  const auto divide = [&](int64_t i, float* to) {
    const float* x = rows.operand(s.a, s.a_offset, i);
    for (int64_t c = 0; c < s.width; c += V::W) V::store(to + c, V::mul(V::load(x + c), V::load(s.constant + c)));
  };
  if (s.linear->K == s.width) {
    for (int64_t i = 0; i < rows.count; ++i) divide(i, scratch + i * stride);
    return float_linear<V>(*s.linear, scratch, stride, rows.count, out, stride);
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    divide(i, scratch);
    spread_row<V>(*s.linear, s.width, scratch, stride + kChannels, out + i * stride);
  }
}

// An instruction that is no chain.
template <class V>
void whole_rows(const Step& s, const Rows& rows) {
  const Frame& f = rows.frame;
  const Tensor& t = f.tensors[s.tensor];
  if (s.op == Step::kRotate) return rotate<V>(s, rows);
  if (s.op == Step::kView) {
    rows.registers[s.dst] = {f.row<float>(t, s.row < 0 ? rows.first : s.row), s.row < 0 ? t.stride : 0};
    return;
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = rows.first + i;
    const float* x = rows.operand(s.a, s.a_offset, i);
    float* out = rows.result(s, i);
    switch (s.op) {
      case Step::kLoadRow: float_row<V>(f, t, s.row < 0 ? row : s.row, out); break;
      case Step::kRmsNorm: rms_norm<V>(s, x, out); break;
      case Step::kLayerNorm: layer_norm<V>(s, x, out); break;
      case Step::kRoundTable: round_by_table<V>(*s.codes, row, x, s.width, out); break;
      case Step::kStoreTable: encode_by_table<V>(*t.codes, row, x, s.width, f.row<uint8_t>(t, row)); break;
      default: break;
    }
  }
}

// `count` rows, of which op.body_rows go through a segment before the next one.
template <class V>
void body(const Operation& op, const Frame& f, View source, int64_t first, int64_t count) {
  View registers[kRegisters];
  float* room = f.scratch + op.tile_floats + op.extra_floats;
  for (int64_t begin = 0; begin < count; begin += op.body_rows) {
    const int64_t left = count - begin;
    const Rows rows = {f, registers, room, op.body_rows, first + begin, left < op.body_rows ? left : op.body_rows};
    registers[0] = {source.data + begin * source.stride, source.stride};
    for (const Segment* g = op.segments; g != op.segments + op.segment_count; ++g) {
      for (const Step* s = g->steps; s != g->steps + g->count; ++s)
        if (s->live) registers[s->dst] = {rows.result(*s, 0), padded(s->width)};
      g->run ? g->run(g->steps, rows) : whole_rows<V>(*g->steps, rows);
    }
  }
}

}  // namespace visq::engine
