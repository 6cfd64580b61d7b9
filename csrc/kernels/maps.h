// Sources that move or add up rows.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

// Copies a row of a tensor for each row of a tile: `from(position)` says which; zeros where the row is negative.
struct Origin {
  int64_t tensor, row;
};

template <class V, class From>
View copied_rows(const Operation& op, const Frame& f, int64_t first, int64_t count, From from) {
  const int64_t stride = padded(op.width);
  for (int64_t i = 0; i < count; ++i) {
    const Origin origin = from(first + i);
    float* out = f.scratch + i * stride;
    if (origin.row < 0) {
      __builtin_memset(out, 0, op.width * sizeof(float));
      continue;
    }
    const float* row = float_row<V>(f, f.tensors[origin.tensor], origin.row, out);
    if (row != out) __builtin_memcpy(out, row, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

template <class V>
View transpose_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  return copied_rows<V>(op, f, first, count, [&](int64_t at) {
    return Origin{op.inputs[0], at % op.map_height * op.map_width + at / op.map_height};
  });
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

template <class V>
void add_row(float* sum, const float* row, int64_t width) {
  for (int64_t k = 0; k < width; k += V::W) V::store(sum + k, V::add(V::load(sum + k), V::load(row + k)));
}

template <class V>
void divide_row(float* sum, int64_t by, int64_t width) {
  const auto divisor = V::set1(static_cast<float>(by));
  for (int64_t k = 0; k < width; k += V::W) V::store(sum + k, V::div(V::load(sum + k), divisor));
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
    __builtin_memset(out, 0, stride * sizeof(float));
    for (int64_t r = top; r < bottom; ++r) {
      for (int64_t s = left; s < right; ++s) {
        add_row<V>(out, float_row<V>(f, t, r * W + s, f.scratch + op.tile_floats), stride);
      }
    }
    divide_row<V>(out, (bottom - top) * (right - left), stride);
  }
  return {f.scratch, stride};
}

// Rows of a map in the order of its windows, with zeros where a window leaves the map; or the way back.
template <class V>
View windows_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t side = op.side, w = op.window, across = (side + w - 1) / w;
  return copied_rows<V>(op, f, first, count, [&](int64_t at) {
    if (op.kind == Operation::kEnterWindows) {
      const int64_t window = at / (w * w), inside = at % (w * w);
      const int64_t y = window / across * w + inside / w, x = window % across * w + inside % w;
      return Origin{op.inputs[0], y < side && x < side ? y * side + x : -1};
    }
    const int64_t y = at / side, x = at % side;
    return Origin{op.inputs[0], (y / w * across + x / w) * w * w + y % w * w + x % w};
  });
}

// Every second row and column of a map, with zeros beyond an odd side.
template <class V>
View sample_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t rows = half(op.map_height), columns = half(op.map_width);
  return copied_rows<V>(op, f, first, count, [&](int64_t at) {
    const int64_t down = op.by_columns ? at % rows : at / columns, across = op.by_columns ? at / rows : at % columns;
    const int64_t y = op.first_row + 2 * down, x = op.first_column + 2 * across;
    return Origin{op.inputs[0], y < op.map_height && x < op.map_width ? y * op.map_width + x : -1};
  });
}

// The map whose four samples are the inputs, each position from the sample that has it.
template <class V>
View merge_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t rows = half(op.map_height), columns = half(op.map_width);
  return copied_rows<V>(op, f, first, count, [&](int64_t at) {
    const int64_t y = at / op.map_width, x = at % op.map_width;
    return Origin{op.inputs[y % 2 + x % 2 * 2], y % 2 ? x / 2 * rows + y / 2 : y / 2 * columns + x / 2};
  });
}

// The mean of all rows, which are added up in order.
template <class V>
View mean_source(const Operation& op, const Frame& f) {
  const Tensor& t = f.tensors[op.inputs[0]];
  const int64_t width = padded(op.width);
  float* out = f.scratch;
  __builtin_memset(out, 0, width * sizeof(float));
  for (int64_t r = 0; r < t.rows; ++r) add_row<V>(out, float_row<V>(f, t, r, f.scratch + op.tile_floats), width);
  divide_row<V>(out, t.rows, width);
  return {out, width};
}

}  // namespace visq::engine::VISQ_LEVEL
