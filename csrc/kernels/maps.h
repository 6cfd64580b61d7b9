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

// The two positions that one lies between, and the share of the second (visq/integer/resampling.py).
struct Between {
  int64_t low, high;
  float share;
};

VISQ_INLINE Between between(int64_t position, int64_t length, int64_t target) {
  const int64_t doubled = (2 * position + 1) * length - target, at = doubled < 0 ? 0 : doubled;
  const int64_t low = at / (2 * target);
  const double share = static_cast<double>(at - low * 2 * target) / static_cast<double>(2 * target);
  return {low, low + 1 < length ? low + 1 : length - 1, static_cast<float>(share)};
}

template <class V>
View bilinear_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), W = op.map_width;
  const Tensor& t = f.tensors[op.inputs[0]];
  float* room = f.scratch + op.tile_floats;
  const auto one = V::set1(1.0f);
  for (int64_t i = 0; i < count; ++i) {
    const Between y = between((first + i) / op.out_width, op.map_height, op.out_height);
    const Between x = between((first + i) % op.out_width, W, op.out_width);
    const float* a = float_row<V>(f, t, y.low * W + x.low, room);
    const float* b = float_row<V>(f, t, y.low * W + x.high, room + stride);
    const float* c = float_row<V>(f, t, y.high * W + x.low, room + 2 * stride);
    const float* d = float_row<V>(f, t, y.high * W + x.high, room + 3 * stride);
    const auto right = V::set1(x.share), left = V::sub(one, right), below = V::set1(y.share), above = V::sub(one, below);
    float* out = f.scratch + i * stride;
    for (int64_t k = 0; k < stride; k += V::W) {
      const auto upper = V::add(V::mul(V::load(a + k), left), V::mul(V::load(b + k), right));
      const auto lower = V::add(V::mul(V::load(c + k), left), V::mul(V::load(d + k), right));
      V::store(out + k, V::add(V::mul(upper, above), V::mul(lower, below)));
    }
  }
  return {f.scratch, stride};
}

// The means of the parts of a map; the rows of a part are added up in order.
template <class V>
View average_pool_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), H = op.map_height, W = op.map_width;
  const Tensor& t = f.tensors[op.inputs[0]];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t y = (first + i) / op.out_width, x = (first + i) % op.out_width;
    const int64_t top = y * H / op.out_height, bottom = ((y + 1) * H + op.out_height - 1) / op.out_height;
    const int64_t left = x * W / op.out_width, right = ((x + 1) * W + op.out_width - 1) / op.out_width;
    float* out = f.scratch + i * stride;
    for (int64_t k = 0; k < stride; k += V::W) V::store(out + k, V::zero());
    for (int64_t r = top; r < bottom; ++r) {
      for (int64_t s = left; s < right; ++s) {
        const float* row = float_row<V>(f, t, r * W + s, f.scratch + op.tile_floats);
        for (int64_t k = 0; k < stride; k += V::W) V::store(out + k, V::add(V::load(out + k), V::load(row + k)));
      }
    }
    const auto rows = V::set1(static_cast<float>((bottom - top) * (right - left)));
    for (int64_t k = 0; k < stride; k += V::W) V::store(out + k, V::div(V::load(out + k), rows));
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

// Every second row and column of a map, with zeros beyond an odd side.
template <class V>
View sample_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), rows = half(op.map_height), columns = half(op.map_width);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + i, down = op.by_columns ? at % rows : at / columns;
    const int64_t across = op.by_columns ? at / rows : at % columns;
    const int64_t y = op.first_row + 2 * down, x = op.first_column + 2 * across;
    float* out = f.scratch + i * stride;
    if (y >= op.map_height || x >= op.map_width) {
      __builtin_memset(out, 0, op.width * sizeof(float));
      continue;
    }
    const float* from = float_row<V>(f, f.tensors[op.inputs[0]], y * op.map_width + x, out);
    if (from != out) __builtin_memcpy(out, from, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

// The map whose four samples are the inputs, each position from the sample that has it.
template <class V>
View merge_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width), rows = half(op.map_height), columns = half(op.map_width);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t y = (first + i) / op.map_width, x = (first + i) % op.map_width;
    const int64_t row = y % 2 ? x / 2 * rows + y / 2 : y / 2 * columns + x / 2;
    float* out = f.scratch + i * stride;
    const float* from = float_row<V>(f, f.tensors[op.inputs[y % 2 + x % 2 * 2]], row, out);
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
