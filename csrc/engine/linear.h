// Linear layers: register tiles of M rows by B blocks of W outputs. Integer sums are exact in any order; the sum in
// float32 runs over k in order, with a product and a sum rounded each.
#pragma once
#include "encode.h"

namespace visq::engine {

// Blocks of a panel and rows of a register tile: accumulators, weights and a broadcast must fit the registers.
template <class V>
struct TileShape {
  static constexpr int kPanel = V::W == 8 ? 2 : 4, kRows = V::W == 1 ? 4 : 6;
};

struct IntRows {
  const char* x;  // bytes, or shorts
  int64_t stride;  // bytes
  float* out;
  int64_t out_stride;
  int64_t row;  // of `x` in its tensor
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// f(Number<n>) for an n from 1 to N that is known at run time.
template <int N, class F>
VISQ_INLINE void with_number(int64_t n, F f) {
  if constexpr (N > 1) {
    if (n < N) return with_number<N - 1>(n, f);
  }
  f(Number<N>{});
}

// W outputs from their sums, a row at a time.
template <class V>
struct Outputs {
  using K = Lanes<V>;
  typename K::I row_sums;
  typename V::T scale, bias;

  // Inlined: a copy of its own could be shared with code compiled for another machine.
  __attribute__((always_inline)) Outputs(const IntLinear& p, int64_t n)
      : row_sums(K::iload(p.row_sums + n)), scale(V::load(p.scale + n)), bias(V::load(p.bias + n)) {}

  __attribute__((always_inline)) void write(typename K::I sum, int32_t zero, float token, float* out) const {
    const auto exact = K::isub(sum, K::imul(K::iset1(zero), row_sums));
    const auto value = V::mul(V::mul(K::to_float(exact), scale), V::set1(token));
    V::store(out, V::add(value, bias));
  }
};

// Every loop over accumulators is unrolled: an array that is indexed by a variable anywhere lives in memory everywhere.
#define VISQ_UNROLL _Pragma("GCC unroll 8")

// A step of a sum: 4 bytes, or 2 values of 16 bits where `kWide` or where there is no instruction for bytes.
template <class V, bool kWide>
VISQ_INLINE typename Lanes<V>::I dot(typename Lanes<V>::I sum, typename Lanes<V>::I w, typename Lanes<V>::I x) {
  if constexpr (kWide && Lanes<V>::kStep == 4)
    return Lanes<V>::dot16(sum, w, x);
  else
    return Lanes<V>::dot(sum, w, x);
}

template <class V, bool kWide, int M, int B>
VISQ_INLINE void int_tile(const IntLinear& p, const IntRows& rows, int64_t steps, const char* w, int64_t n) {
  using K = Lanes<V>;
  const char* x = rows.x;
  const int64_t stride = rows.stride, out_stride = rows.out_stride;
  float* out = rows.out + n;
  const float* token = p.token + rows.row;
  const int32_t* zero = p.zero + rows.row;
  typename K::I sum[M][B];
  VISQ_UNROLL for (int i = 0; i < M; ++i) {
    VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = K::izero();
  }
  for (int64_t s = 0; s < steps; ++s, w += B * V::W * 4, x += 4) {
    typename K::I weights[B];
    VISQ_UNROLL for (int j = 0; j < B; ++j) weights[j] = K::weights(w + j * V::W * 4);
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      const auto value = K::broadcast(x + i * stride);
      VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = dot<V, kWide>(sum[i][j], weights[j], value);
    }
  }
  VISQ_UNROLL for (int j = 0; j < B; ++j) {
    const Outputs<V> outputs(p, n + j * V::W);
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      outputs.write(sum[i][j], zero[i], token[i], out + i * out_stride + j * V::W);
    }
  }
}

template <class V, int M, int B>
VISQ_INLINE void float_tile(const FloatLinear& p, const float* x, int64_t stride, const float* w, int64_t n, float* out,
                            int64_t out_stride) {
  typename V::T sum[M][B];
  VISQ_UNROLL for (int i = 0; i < M; ++i) {
    VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = V::zero();
  }
  for (int64_t k = 0; k < p.K; ++k, w += B * V::W) {
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      const auto value = V::set1(x[i * stride + k]);
      VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = V::add(sum[i][j], V::mul(value, V::load(w + j * V::W)));
    }
  }
  VISQ_UNROLL for (int j = 0; j < B; ++j) {
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      const auto value = p.bias ? V::add(sum[i][j], V::load(p.bias + n + j * V::W)) : sum[i][j];
      V::store(out + i * out_stride + n + j * V::W, value);
    }
  }
}

#undef VISQ_UNROLL

template <class V, bool kWide>
void int_linear(const IntLinear& p, const IntRows& rows, int64_t count) {
  using Shape = TileShape<V>;
  constexpr int64_t kStep = kWide ? 2 : Lanes<V>::kStep;
  const int64_t steps = padded(p.K, kStep) / kStep, blocks = p.N / V::W;
  const char* w = static_cast<const char*>(p.packed);
  for (int64_t block = 0; block < blocks; block += Shape::kPanel) {
    const int64_t width = blocks - block < Shape::kPanel ? blocks - block : Shape::kPanel;
    with_number<Shape::kPanel>(width, [&](auto b) {
      for (int64_t i = 0; i < count; i += Shape::kRows) {
        IntRows part = rows;
        part.x += i * rows.stride, part.out += i * rows.out_stride, part.row += i;
        with_number<Shape::kRows>(count - i < Shape::kRows ? count - i : Shape::kRows, [&](auto m) {
          int_tile<V, kWide, decltype(m)::value, decltype(b)::value>(p, part, steps, w, block * V::W);
        });
      }
    });
    w += width * steps * V::W * 4;
  }
}

template <class V>
void float_linear(const FloatLinear& p, const float* x, int64_t stride, int64_t count, float* out, int64_t out_stride) {
  using Shape = TileShape<V>;
  const int64_t blocks = p.N / V::W;
  const float* w = p.packed;
  for (int64_t block = 0; block < blocks; block += Shape::kPanel) {
    const int64_t width = blocks - block < Shape::kPanel ? blocks - block : Shape::kPanel;
    with_number<Shape::kPanel>(width, [&](auto b) {
      for (int64_t i = 0; i < count; i += Shape::kRows)
        with_number<Shape::kRows>(count - i < Shape::kRows ? count - i : Shape::kRows, [&](auto m) {
          float_tile<V, decltype(m)::value, decltype(b)::value>(p, x + i * stride, stride, w, block * V::W,
                                                                out + i * out_stride, out_stride);
        });
    });
    w += width * p.K * V::W;
  }
}

// The 16-bit values of a row's bytes. The last step may hold one beyond them, whose weights are zero.
VISQ_INLINE void wide_row(const IntLinear& p, const uint8_t* bytes, int16_t* out) {
  for (int64_t k = 0; k < p.K; ++k) {
    const int value = p.values ? p.values[bytes[k]] : bytes[k];
    out[k] = static_cast<int16_t>((value - p.offset[k]) * p.factor[k]);
  }
}

// `count` rows from `first` on.
template <class V>
View linear_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const Tensor& t = f.tensors[op.inputs[0]];
  const int64_t out_stride = padded(op.width);
  float* out = f.scratch;
  float* extra = out + op.tile_floats;
  if (op.kind == Operation::kFloatLinear) {
    const int64_t stride = t.codes ? padded(t.width) : t.stride;
    if (t.codes)
      for (int64_t i = 0; i < count; ++i)
        decode_row<V>(*t.codes, first + i, f.row<uint8_t>(t, first + i), t.width, extra + i * stride);
    float_linear<V>(op.float_linear, t.codes ? extra : f.row<float>(t, first), stride, count, out, out_stride);
    return {out, out_stride};
  }
  IntRows rows = {f.row<char>(t, first), t.stride, out, out_stride, first};
  int16_t* wide = reinterpret_cast<int16_t*>(extra);
  if (op.int_linear.wide) {
    for (int64_t i = 0; i < count; ++i) wide_row(op.int_linear, f.row<uint8_t>(t, first + i), wide + i * t.stride);
    rows.x = reinterpret_cast<const char*>(wide), rows.stride = t.stride * 2;
    int_linear<V, true>(op.int_linear, rows, count);
    return {out, out_stride};
  }
  if (Lanes<V>::kStep == 2) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < t.width; k += V::W)
        Lanes<V>::widen(f.row<uint8_t>(t, first + i) + k, wide + i * t.stride + k);
    rows.x = reinterpret_cast<const char*>(wide), rows.stride = t.stride * 2;
  }
  int_linear<V, false>(op.int_linear, rows, count);
  return {out, out_stride};
}

}  // namespace visq::engine
