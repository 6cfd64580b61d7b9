// Depthwise convolution over a map, whose positions are the rows of a tensor. Zeros lie outside.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

// The taps of an output's window that lie on the map, in the order of the weight: the row each reads, and which it is.
struct Window {
  int64_t count;
  int64_t row[kMaxKernel * kMaxKernel], tap[kMaxKernel * kMaxKernel];
};

VISQ_INLINE void window_of(const Conv2d& p, int64_t t, Window& found) {
  const int64_t y = t / p.out_width - p.padding, x = t % p.out_width - p.padding;
  found.count = 0;
  for (int64_t i = 0; i < p.K; ++i)
    for (int64_t j = 0; j < p.K; ++j) {
      if (y + i < 0 || y + i >= p.height || x + j < 0 || x + j >= p.width) continue;
      found.row[found.count] = (y + i) * p.width + x + j;
      found.tap[found.count++] = i * p.K + j;
    }
}

template <class V>
void int_conv2d_row(const Operation& op, const Frame& f, int64_t t, float* out) {
  const Conv2d& p = op.conv2d;
  const Tensor& x = f.tensors[op.inputs[0]];
  const int64_t width = padded(op.width);
  Window window;
  window_of(p, t, window);
  const uint8_t* rows[kMaxKernel * kMaxKernel];
  const int32_t* taps[kMaxKernel * kMaxKernel];
  for (int64_t k = 0; k < window.count; ++k) {
    rows[k] = f.row<uint8_t>(x, window.row[k]);
    taps[k] = p.taps + window.tap[k] * width;
  }
  const bool whole = window.count == p.K * p.K;
  for (int64_t c = 0; c < op.width; c += V::W) {
    auto sum = V::izero(), weights = V::izero();
    for (int64_t k = 0; k < window.count; ++k) {
      const auto tap = V::iload(taps[k] + c);
      sum = V::iadd(sum, V::imul_low(V::ibytes(rows[k] + c), tap));
      if (!whole) weights = V::iadd(weights, tap);
    }
    if (whole) weights = V::iload(p.tap_sums + c);
    const auto exact = V::isub(sum, V::imul(V::iload(p.zero + c), weights));
    V::store(out + c, V::add(V::mul(V::to_float(exact), V::load(p.scale + c)), V::load(p.bias + c)));
  }
}

// `room` holds a row of decoded input.
template <class V>
void float_conv2d_row(const Operation& op, const Frame& f, int64_t t, float* room, float* out) {
  const Conv2d& p = op.conv2d;
  const int64_t width = padded(op.width);
  Window window;
  window_of(p, t, window);
  for (int64_t c = 0; c < width; c += V::W) V::store(out + c, V::zero());
  for (int64_t k = 0; k < window.count; ++k) {
    const float* row = float_row<V>(f, f.tensors[op.inputs[0]], window.row[k], room);
    const float* tap = p.weight + window.tap[k] * width;
    for (int64_t c = 0; c < width; c += V::W)
      V::store(out + c, V::add(V::load(out + c), V::mul(V::load(row + c), V::load(tap + c))));
  }
  for (int64_t c = 0; c < width; c += V::W) V::store(out + c, V::add(V::load(out + c), V::load(p.bias + c)));
}

template <class V>
View conv2d_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t width = padded(op.width);
  float* out = f.scratch;
  for (int64_t i = 0; i < count; ++i)
    if (op.kind == Operation::kIntConv2d)
      int_conv2d_row<V>(op, f, first + i, out + i * width);
    else
      float_conv2d_row<V>(op, f, first + i, out + op.tile_floats, out + i * width);
  return {out, width};
}

}  // namespace visq::engine::VISQ_LEVEL
