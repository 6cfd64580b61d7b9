// The instructions that are no chain, and the loop over a body.
#pragma once
#include "kernels/chains.h"
#include "kernels/linear.h"

namespace visq::engine::VISQ_LEVEL {

// Sums a row in 16 lanes, then adds the lanes in halves: the same order at every level.
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
VISQ_INLINE void rms_norm(const Instruction& s, const float* x, float* out) {
  const float sum = row_sum<V>(s.width, [&](int64_t c, int n) {
    const auto v = V::load_n(x + c, n);
    return V::mul(v, v);
  });
  const float mean = sum * s.value;  // value: 1 / width
  const auto inverse = V::div(V::set1(1.0f), V::sqrt(V::set1(mean + s.eps)));
  for (int64_t c = 0; c < s.width; c += V::W)
    V::store(out + c, V::mul(V::mul(V::load(x + c), inverse), V::load(s.constant + c)));
}

template <class V>
VISQ_INLINE void layer_norm(const Instruction& s, const float* x, float* out) {
  const float sum = row_sum<V>(s.width, [&](int64_t c, int n) { return V::load_n(x + c, n); });
  const float width = static_cast<float>(s.width);
  const auto mean = V::set1(sum / width);
  for (int64_t c = 0; c < s.width; c += V::W) V::store(out + c, V::sub(V::load(x + c), mean));
  const float squares = row_sum<V>(s.width, [&](int64_t c, int n) {
    const auto v = V::load_n(out + c, n);
    return V::mul(v, v);
  });
  const auto inverse = V::div(V::set1(1.0f), V::sqrt(V::set1(squares / width + s.eps)));
  for (int64_t c = 0; c < s.width; c += V::W) {
    const auto scaled = V::mul(V::mul(V::load(out + c), inverse), V::load(s.constant + c));
    V::store(out + c, V::add(scaled, V::load(s.bias + c)));
  }
}

// visq.integer.arithmetic.rotate: takes sums and differences, then multiplies every run of K channels by the matrix. `x` is
// the first of two rows of `stride` floats, and room for the products follows them. Each store writes a whole vector; its
// tail is overwritten by the next run, or lies beyond the row.
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
void rotate(const Instruction& s, const BodyRows& rows) {
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

// Runs an instruction that is no chain.
template <class V>
void whole_rows(const Instruction& s, const BodyRows& rows) {
  const Frame& f = rows.frame;
  const Tensor& t = f.tensors[s.tensor];
  if (s.op == Instruction::kRotate) return rotate<V>(s, rows);
  if (s.op == Instruction::kView) {
    rows.registers[s.dst] = {f.row<float>(t, s.row < 0 ? rows.first : s.row), s.row < 0 ? t.stride : 0};
    return;
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = rows.first + i;
    const float* x = rows.operand(s.a, s.a_offset, i);
    float* out = rows.result(s, i);
    switch (s.op) {
      case Instruction::kLoadRow: float_row<V>(f, t, s.row < 0 ? row : s.row, out); break;
      case Instruction::kRmsNorm: rms_norm<V>(s, x, out); break;
      case Instruction::kLayerNorm: layer_norm<V>(s, x, out); break;
      case Instruction::kAppend:
        __builtin_memcpy(out, x, s.first_width * sizeof(float));
        __builtin_memcpy(out + s.first_width, rows.operand(s.b, s.b_offset, i), (s.width - s.first_width) * sizeof(float));
        break;
      case Instruction::kTurn:
        for (int64_t c = 0; c < s.width; c += 2) out[c] = -x[c + 1], out[c + 1] = x[c];
        break;
      case Instruction::kRoundTable: round_by_table<V>(*s.codec, row, x, s.width, out); break;
      case Instruction::kStoreTable: encode_by_table<V>(*t.codec, row, x, s.width, f.row<uint8_t>(t, row)); break;
      default: break;
    }
  }
}

// Runs the body on `count` rows: op.body_rows of them go through one segment after the other, then the next ones do.
template <class V>
void body(const Operation& op, const Frame& f, View source, int64_t first, int64_t count) {
  View registers[kRegisters];
  float* room = f.scratch + op.tile_floats + op.extra_floats;
  for (int64_t begin = 0; begin < count; begin += op.body_rows) {
    const int64_t left = count - begin;
    const BodyRows rows = {f, registers, room, op.body_rows, first + begin, left < op.body_rows ? left : op.body_rows};
    registers[0] = {source.data + begin * source.stride, source.stride};
    for (const Segment* g = op.segments; g != op.segments + op.segment_count; ++g) {
      for (const Instruction* s = g->instructions; s != g->instructions + g->count; ++s)
        if (s->in_memory) registers[s->dst] = {rows.result(*s, 0), padded(s->width)};
      g->run ? g->run(g->instructions, rows) : whole_rows<V>(*g->instructions, rows);
    }
  }
}

}  // namespace visq::engine::VISQ_LEVEL
