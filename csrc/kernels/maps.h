// Sources that move or add up rows.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

template <class V>
View transpose_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), H = op.map_height, W = op.map_width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) % H * W + (first + i) / H;
    float* out = f.scratch + i * stride;
    const float* from = float_row<V>(f, f.tensors[op.inputs[0]], row, out);
    if (from != out) __builtin_memcpy(out, from, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

// Channel c of position (y, x) is channel c scale^2 + (y % scale) scale + x % scale of (y / scale, x / scale).
template <class V>
View shuffle_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), scale = op.scale, across = op.map_width * scale;
  const Tensor& t = f.tensors[op.inputs[0]];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t y = (first + i) / across, x = (first + i) % across, row = y / scale * op.map_width + x / scale;
    const float* from = float_row<V>(f, t, row, f.scratch + op.tile_floats) + y % scale * scale + x % scale;
    float* out = f.scratch + i * stride;
    for (int64_t c = 0; c < op.width; ++c) out[c] = from[c * scale * scale];
  }
  return {f.scratch, stride};
}

// Rows of a map in the order of its windows, with zeros where a window leaves the map; or the way back.
template <class V>
View windows_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), side = op.side, w = op.window, across = (side + w - 1) / w;
  for (int64_t i = 0; i < count; ++i) {
    int64_t row = first + i;
    if (op.kind == Operation::kEnterWindows) {
      const int64_t window = row / (w * w), inside = row % (w * w);
      const int64_t y = window / across * w + inside / w, x = window % across * w + inside % w;
      row = y < side && x < side ? y * side + x : -1;
    } else {
      const int64_t y = row / side, x = row % side;
      row = (y / w * across + x / w) * w * w + y % w * w + x % w;
    }
    float* out = f.scratch + i * stride;
    if (row < 0) {
      __builtin_memset(out, 0, op.width * sizeof(float));
      continue;
    }
    const float* from = float_row<V>(f, f.tensors[op.inputs[0]], row, out);
    if (from != out) __builtin_memcpy(out, from, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

// The mean of all rows, which are added up in order.
template <class V>
View mean_source(const Operation& op, const Frame& f) {
  const Tensor& t = f.tensors[op.inputs[0]];
  const int64_t width = padded(op.width);
  float* out = f.scratch;
  for (int64_t c = 0; c < width; c += V::W) V::store(out + c, V::zero());
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* row = float_row<V>(f, t, r, f.scratch + op.tile_floats);
    for (int64_t c = 0; c < width; c += V::W) V::store(out + c, V::add(V::load(out + c), V::load(row + c)));
  }
  const auto rows = V::set1(static_cast<float>(t.rows));
  for (int64_t c = 0; c < width; c += V::W) V::store(out + c, V::div(V::load(out + c), rows));
  return {out, width};
}

}  // namespace visq::engine::VISQ_LEVEL
