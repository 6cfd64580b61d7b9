// Windows of a map or of the image: what convolutions that mix channels read. Zeros lie outside.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

// Where window `index` begins, and the part of it that lies inside: rows [top, bottom), columns [left, right).
struct Inside {
  int64_t y, x, top, bottom, left, right;
  bool whole;
};

VISQ_INLINE Inside inside_of(const Windows& w, int64_t index) {
  const auto clipped = [](int64_t n, int64_t end) { return n < 0 ? 0 : n > end ? end : n; };
  const int64_t y = index / w.out_width * w.stride_height - w.padding_height;
  const int64_t x = index % w.out_width * w.stride_width - w.padding_width;
  const int64_t top = clipped(y, w.height), bottom = clipped(y + w.kernel_height, w.height);
  const int64_t left = clipped(x, w.width), right = clipped(x + w.kernel_width, w.width);
  return {y, x, top, bottom, left, right, bottom - top == w.kernel_height && right - left == w.kernel_width};
}

// A window of codes, [kernel_height][kernel_width][channels]. Copies are whole lines: the tail of one is overwritten by
// the next, and up to a line is written beyond the window.
VISQ_INLINE void window_codes(const Windows& w, const Frame& f, const Tensor& t, int64_t index, uint8_t* out) {
  const Inside in = inside_of(w, index);
  const int64_t C = t.width;
  for (int64_t i = 0; i < w.kernel_height; ++i) {
    const int64_t r = in.y + i;
    for (int64_t j = 0; j < w.kernel_width; ++j, out += C) {
      const int64_t s = in.x + j;
      if (in.whole || (r >= in.top && r < in.bottom && s >= in.left && s < in.right)) {
        const uint8_t* from = f.row<uint8_t>(t, r * w.width + s);
        for (int64_t c = 0; c < C; c += 64) __builtin_memcpy(out + c, from + c, 64);
      } else {
        for (int64_t c = 0; c < C; c += 64) __builtin_memset(out + c, w.outside, 64);
      }
    }
  }
}

// A window of floats, [channels][kernel_height][kernel_width]; `room` holds a row of decoded input.
template <class V>
VISQ_INLINE void window_floats(const Windows& w, const Frame& f, const Tensor& t, int64_t index, float* room, float* out) {
  const Inside in = inside_of(w, index);
  const int64_t taps = w.kernel_height * w.kernel_width;
  if (!in.whole) __builtin_memset(out, 0, t.width * taps * sizeof(float));
  for (int64_t r = in.top; r < in.bottom; ++r)
    for (int64_t s = in.left; s < in.right; ++s) {
      const float* from = float_row<V>(f, t, r * w.width + s, room);
      float* to = out + (r - in.y) * w.kernel_width + s - in.x;
      for (int64_t c = 0; c < t.width; ++c) to[c * taps] = from[c];
    }
}

// A window of the image, [channels][kernel_height][kernel_width].
VISQ_INLINE void window_pixels(const Windows& w, const Frame& f, int64_t index, float* out) {
  const Inside in = inside_of(w, index);
  const int64_t taps = w.kernel_height * w.kernel_width;
  if (!in.whole) __builtin_memset(out, 0, f.channels * taps * sizeof(float));
  for (int64_t c = 0; c < f.channels; ++c)
    for (int64_t r = in.top; r < in.bottom; ++r)
      __builtin_memcpy(out + (c * w.kernel_height + r - in.y) * w.kernel_width + in.left - in.x,
                       f.image + (c * w.height + r) * w.width + in.left, (in.right - in.left) * sizeof(float));
}

template <class V>
View patches_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width);
  for (int64_t i = 0; i < count; ++i) {
    float* out = f.scratch + i * stride;
    if (op.inputs[0] < 0)
      window_pixels(op.windows, f, first + i, out);
    else
      window_floats<V>(op.windows, f, f.tensors[op.inputs[0]], first + i, f.scratch + op.tile_floats, out);
  }
  return {f.scratch, stride};
}

// The codes that an integer linear layer reads: rows of its tensor in place, or windows, which are copied to `room`.
struct CodeRows {
  const uint8_t* data;
  int64_t stride;
  char* room;  // what is left of it
};

VISQ_INLINE CodeRows code_rows(const Operation& op, const Frame& f, int64_t first, int64_t count, float* room) {
  const Tensor& t = f.tensors[op.inputs[0]];
  char* left = reinterpret_cast<char*>(room);
  if (!op.windows.height) return {f.row<uint8_t>(t, first), t.stride, left};
  uint8_t* codes = reinterpret_cast<uint8_t*>(left);
  const int64_t stride = padded(op.int_linear.K, 64);
  for (int64_t i = 0; i < count; ++i) window_codes(op.windows, f, t, first + i, codes + i * stride);
  return {codes, stride, left + count * stride + 64};
}

}  // namespace visq::engine::VISQ_LEVEL
