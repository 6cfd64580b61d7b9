// Depthwise convolution over the rows of sequences (from the last row to the first where `reverse`). It is causal but for
// the `ahead` rows that come after. Rows outside of a sequence are zero.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

// Returns the row that tap k of output row t reads, or -1.
VISQ_INLINE int64_t tap_row(const Conv1d& p, int64_t t, int64_t k) {
  const int64_t back = p.K - 1 - k - p.ahead, at = p.reverse ? t + back : t - back;
  const int64_t begin = t / p.length * p.length;
  return at >= begin && at < begin + p.length ? at : -1;
}

// At most four taps: those of a channel are the four bytes of one step of an integer sum.
template <class V>
VISQ_INLINE void four_taps(const Conv1d& p, const uint8_t* const* rows, int64_t missing, int64_t end, int64_t width,
                           float* out) {
  static_assert(V::W == 16);
  alignas(64) static const uint8_t nothing[64] = {};
  const int32_t *correction = p.correction + missing * padded(width), *beyond = p.correction + end * padded(width);
  for (int64_t c = 0; c < width; c += 64) {
    const uint8_t* from[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t tap = k - (4 - p.K);
      from[k] = tap < missing || tap >= end ? nothing : rows[tap] + c;
    }
    typename V::I x[4];
    V::interleave(from, x);
    for (int j = 0; j < 4 && c + j * 16 < width; ++j) {
      const int64_t at = c + j * 16;
      const auto zeros = V::isub(V::iload(correction + at), V::iload(beyond + at));
      const auto sum = V::isub(V::dot(V::izero(), V::weights(p.four + at * 4), x[j]), zeros);
      V::store(out + at, V::add(V::mul(V::to_float(sum), V::load(p.scale + at)), V::load(p.bias + at)));
    }
  }
}

template <class V>
void int_conv_row(const Operation& op, const Frame& f, int64_t t, float* out) {
  const Conv1d& p = op.conv1d;
  const Tensor& x = f.tensors[op.inputs[0]];
  const int64_t width = padded(op.width);
  // Taps go from the oldest row to the latest one, so the first and the last ones are those that miss their row.
  const uint8_t* rows[64];
  int64_t missing = 0, end = p.K;
  for (int64_t k = 0; k < p.K; ++k) {
    const int64_t at = tap_row(p, t, k);
    missing += at < 0 && missing == k;
    if (at < 0 && missing <= k && end == p.K) end = k;
    rows[k] = at < 0 ? nullptr : f.row<uint8_t>(x, at);
  }
  if constexpr (V::kStep == 4 && V::W == 16) {
    if (p.four) return four_taps<V>(p, rows, missing, end, op.width, out);
  }
  for (int64_t c = 0; c < op.width; c += V::W) {
    auto sum = V::isub(V::iload(p.correction + end * width + c), V::iload(p.correction + missing * width + c));
    for (int64_t k = missing; k < end; ++k)
      sum = V::iadd(sum, V::imul_low(V::ibytes(rows[k] + c), V::iload(p.taps + k * width + c)));
    V::store(out + c, V::add(V::mul(V::to_float(sum), V::load(p.scale + c)), V::load(p.bias + c)));
  }
}

// `decoded` has room for the rows that `count` outputs read: [count + K - 1].
template <class V>
void float_conv(const Operation& op, const Frame& f, int64_t first, int64_t count, float* decoded, float* out) {
  const Conv1d& p = op.conv1d;
  const Tensor& x = f.tensors[op.inputs[0]];
  const int64_t width = padded(op.width), back = p.K - 1 - p.ahead;
  const int64_t earlier = first - (p.reverse ? p.ahead : back), begin = earlier < 0 ? 0 : earlier;
  const int64_t last = first + count + (p.reverse ? back : p.ahead), end = last < op.rows ? last : op.rows;
  if (x.codec)
    for (int64_t r = begin; r < end; ++r)
      decode_row<V>(*x.codec, r, f.row<uint8_t>(x, r), x.width, decoded + (r - begin) * width);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < op.width; c += V::W) {
      auto sum = V::zero();
      for (int64_t k = 0; k < p.K; ++k) {
        const int64_t at = tap_row(p, first + i, k);
        if (at < 0) continue;
        const float* row = x.codec ? decoded + (at - begin) * width : f.row<float>(x, at);
        sum = V::add(sum, V::mul(V::load(row + c), V::load(p.weight + k * width + c)));
      }
      V::store(out + i * width + c, V::add(sum, V::load(p.bias + c)));
    }
}

template <class V>
View conv_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t width = padded(op.width);
  float* out = f.scratch;
  if (op.kind == Operation::kIntConv)
    for (int64_t i = 0; i < count; ++i) int_conv_row<V>(op, f, first + i, out + i * width);
  else
    float_conv<V>(op, f, first, count, out + op.tile_floats, out);
  return {out, width};
}

}  // namespace visq::engine::VISQ_LEVEL
