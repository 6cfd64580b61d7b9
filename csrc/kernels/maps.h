// Sources that move or add up rows, or pixels of the image.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

// Windows of the image or of a map, in the order of a convolution's weight; zeros lie outside.
template <class V>
View patches_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t P = op.patch, side = op.side, stride = padded(op.width);
  const int64_t windows = (side + 2 * op.padding - P) / op.patch_stride + 1;
  const auto clipped = [side](int64_t n) { return n < 0 ? 0 : n > side ? side : n; };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t y = (first + i) / windows * op.patch_stride - op.padding;
    const int64_t x = (first + i) % windows * op.patch_stride - op.padding;
    // The part of the window that lies inside.
    const int64_t top = clipped(y), bottom = clipped(y + P), left = clipped(x), right = clipped(x + P);
    float* out = f.scratch + i * stride;
    if (bottom - top < P || right - left < P) __builtin_memset(out, 0, op.width * sizeof(float));
    if (op.inputs[0] < 0) {
      for (int64_t c = 0; c < f.channels; ++c)
        for (int64_t r = top; r < bottom; ++r)
          __builtin_memcpy(out + (c * P + r - y) * P + left - x, f.image + (c * side + r) * side + left,
                           (right - left) * sizeof(float));
      continue;
    }
    const Tensor& t = f.tensors[op.inputs[0]];
    for (int64_t r = top; r < bottom; ++r)
      for (int64_t s = left; s < right; ++s) {
        const float* from = float_row<V>(f, t, r * side + s, f.scratch + op.tile_floats);
        float* to = out + (r - y) * P + s - x;
        for (int64_t c = 0; c < t.width; ++c) to[c * P * P] = from[c];
      }
  }
  return {f.scratch, stride};
}

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
