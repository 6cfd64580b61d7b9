// Linear layers, computed in register tiles of M rows by B blocks of W outputs. Integer sums are exact in any order. Sums
// in float32 run over k in order, and round each product and each addition.
#pragma once
#include "kernels/windows.h"

namespace visq::engine::VISQ_LEVEL {

// Blocks of a panel and rows of a register tile, so that accumulators, weights and a broadcast fit the registers.
template <class V>
struct TileShape {
  static constexpr int kPanel = V::W == 8 ? 2 : 4, kRows = V::W == 1 ? 4 : 6;
};

struct IntRows {
  const char* x;  // bytes, or shorts
  int64_t stride;  // bytes
  float* out;
  int64_t out_stride;
  int64_t row;  // of the tensor, where `x` begins
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls f(Number<n>{}) for an n from 1 to N that is known only at run time.
template <int N, class F>
VISQ_INLINE void with_number(int64_t n, F f) {
  if constexpr (N > 1) {
    if (n < N) return with_number<N - 1>(n, f);
  }
  f(Number<N>{});
}

// Turns the sums of W outputs into floats, a row at a time.
template <class V>
struct Outputs {
  typename V::I row_sums;
  typename V::T scale, bias;

  __attribute__((always_inline)) Outputs(const IntLinear& p, int64_t n)
      : row_sums(V::iload(p.row_sums + n)), scale(V::load(p.scale + n)), bias(V::load(p.bias + n)) {}

  __attribute__((always_inline)) void write(typename V::I sum, int32_t zero, float token, float* out) const {
    const auto exact = V::isub(sum, V::imul(V::iset1(zero), row_sums));
    const auto value = V::mul(V::mul(V::to_float(exact), scale), V::set1(token));
    V::store(out, V::add(value, bias));
  }
};

// Every loop over accumulators is unrolled: an array that any code indexes by a variable lives in memory.
#define VISQ_UNROLL _Pragma("GCC unroll 8")

// The elements of a sum: bytes (widened to shorts on levels without a product of bytes), 16-bit values, or bytes times
// weights of 4 bits.
enum class Elements { kBytes, kWide, kNibbles };

// One step of a sum: a register of weights, for W outputs, and kEach elements (kBytes) of a row.
template <class V, Elements kElements>
struct Weights {
  using I = typename V::I;
  static constexpr int kEach = kElements == Elements::kWide ? 2 : V::kStep, kBytes = 4, kParts = 1;
  static constexpr int kOffset = kElements == Elements::kWide ? 0 : V::kOffset;
  template <int kPart>
  VISQ_INLINE I load(const char* w) {
    return V::weights(w);
  }
  template <int kPart>
  VISQ_INLINE I broadcast(const char* x) {
    return V::broadcast(x);
  }
  VISQ_INLINE I dot(I sum, I w, I x) {
    if constexpr (kElements == Elements::kWide && V::kStep == 4)
      return V::dot16(sum, V::as_shorts(w), V::as_shorts(x));
    else
      return V::dot(sum, w, x);
  }
  VISQ_INLINE I total(I sum) { return sum; }
};

// A register of 4-bit weights holds two steps. They are multiplied together or, where a product takes four bytes, in two
// parts.
template <class V>
struct Weights<V, Elements::kNibbles> {
  using I = typename V::I;
  static constexpr bool kTogether = V::kStep == 2;
  static constexpr int kEach = 8, kBytes = 8, kParts = kTogether ? 1 : 2, kOffset = V::kOffset;
  template <int kPart>
  VISQ_INLINE auto load(const char* w) {
    if constexpr (kTogether)
      return V::nibbles(V::weights(w));
    else
      return V::template nibbles<kPart>(V::weights(w));
  }
  template <int kPart>
  VISQ_INLINE auto broadcast(const char* x) {
    if constexpr (kTogether)
      return typename V::Pair{V::broadcast(x), V::broadcast(x + 4)};
    else
      return V::broadcast(x + 4 * kPart);
  }
  template <class W>
  VISQ_INLINE I dot(I sum, W w, W x) {
    if constexpr (kTogether)
      return V::dot_pair(sum, w, x);
    else
      return V::dot(sum, w, x);
  }
  VISQ_INLINE I total(I sum) {
    if constexpr (kTogether)
      return sum;
    else
      return V::sixteenth(sum);
  }
};

template <class V, Elements kElements, int M, int B>
VISQ_INLINE void int_tile(const IntLinear& p, const IntRows& rows, int64_t registers, const char* w, int64_t n) {
  const char* x = rows.x;
  const int64_t stride = rows.stride, out_stride = rows.out_stride;
  float* out = rows.out + n;
  const float* token = p.token + rows.row;
  const int32_t* zero = p.zero + rows.row;
  typename V::I sum[M][B];
  VISQ_UNROLL for (int i = 0; i < M; ++i) {
    VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = V::izero();
  }
  using Of = Weights<V, kElements>;
  const auto add = [&](auto part) __attribute__((always_inline)) {
    constexpr int kPart = decltype(part)::value;
    decltype(Of::template load<kPart>(w)) weights[B];
    VISQ_UNROLL for (int j = 0; j < B; ++j) weights[j] = Of::template load<kPart>(w + j * V::W * 4);
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      const auto values = Of::template broadcast<kPart>(x + i * stride);
      VISQ_UNROLL for (int j = 0; j < B; ++j) sum[i][j] = Of::dot(sum[i][j], weights[j], values);
    }
  };
  for (int64_t r = 0; r < registers; ++r, w += B * V::W * 4, x += Of::kBytes) {
    add(Number<0>{});
    if constexpr (Of::kParts == 2) add(Number<1>{});
  }
  VISQ_UNROLL for (int j = 0; j < B; ++j) {
    const Outputs<V> outputs(p, n + j * V::W);
    VISQ_UNROLL for (int i = 0; i < M; ++i) {
      outputs.write(Of::total(sum[i][j]), zero[i] - Of::kOffset, token[i], out + i * out_stride + j * V::W);
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

template <class V, Elements kElements>
void int_linear(const IntLinear& p, const IntRows& rows, int64_t count) {
  using Shape = TileShape<V>;
  constexpr int64_t kEach = Weights<V, kElements>::kEach;
  const int64_t registers = padded(p.K, kEach) / kEach, blocks = p.N / V::W;
  const char* w = static_cast<const char*>(p.packed);
  for (int64_t block = 0; block < blocks; block += Shape::kPanel) {
    const int64_t width = blocks - block < Shape::kPanel ? blocks - block : Shape::kPanel;
    with_number<Shape::kPanel>(width, [&](auto b) {
      for (int64_t i = 0; i < count; i += Shape::kRows) {
        IntRows part = rows;
        part.x += i * rows.stride, part.out += i * rows.out_stride, part.row += i;
        with_number<Shape::kRows>(count - i < Shape::kRows ? count - i : Shape::kRows, [&](auto m) {
          int_tile<V, kElements, decltype(m)::value, decltype(b)::value>(p, part, registers, w, block * V::W);
        });
      }
    });
    w += width * registers * V::W * 4;
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

// Writes the 16-bit values of a row's bytes. The last step may read one value more, whose weights are zero.
VISQ_INLINE void wide_row(const IntLinear& p, const uint8_t* bytes, int16_t* out) {
  for (int64_t k = 0; k < p.K; ++k) {
    const int value = p.values ? p.values[bytes[k]] : bytes[k];
    out[k] = static_cast<int16_t>((value - p.offset[k]) * p.factor[k]);
  }
}

// Computes `count` rows from `first` on.
template <class V>
View linear_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const Tensor& t = f.tensors[op.inputs[0]];
  const int64_t out_stride = padded(op.width);
  float* out = f.scratch;
  float* extra = out + op.tile_floats;
  if (op.kind == Operation::kFloatLinear) {
    const int64_t K = op.float_linear.K, stride = t.codec || op.windows.height ? padded(K) : t.stride;
    if (op.windows.height)
      for (int64_t i = 0; i < count; ++i)
        window_floats<V>(op.windows, f, t, first + i, extra + count * stride, extra + i * stride);
    else if (t.codec)
      for (int64_t i = 0; i < count; ++i)
        decode_row<V>(*t.codec, first + i, f.row<uint8_t>(t, first + i), K, extra + i * stride);
    const bool copied = t.codec || op.windows.height;
    float_linear<V>(op.float_linear, copied ? extra : f.row<float>(t, first), stride, count, out, out_stride);
    return {out, out_stride};
  }
  const int64_t K = op.int_linear.K;
  const CodeRows codes = code_rows(op, f, first, count, extra);
  IntRows rows = {reinterpret_cast<const char*>(codes.data), codes.stride, out, out_stride, first};
  int16_t* wide = reinterpret_cast<int16_t*>(codes.room);
  if (op.int_linear.wide) {
    for (int64_t i = 0; i < count; ++i) wide_row(op.int_linear, codes.data + i * codes.stride, wide + i * codes.stride);
    rows.x = reinterpret_cast<const char*>(wide), rows.stride = codes.stride * 2;
    int_linear<V, Elements::kWide>(op.int_linear, rows, count);
  } else if (op.int_linear.nibbles) {
    int_linear<V, Elements::kNibbles>(op.int_linear, rows, count);
  } else {
    if (V::kStep == 2) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < K; k += V::W)
          V::widen(codes.data + i * codes.stride + k, wide + i * codes.stride + k);
      rows.x = reinterpret_cast<const char*>(wide), rows.stride = codes.stride * 2;
    }
    int_linear<V, Elements::kBytes>(op.int_linear, rows, count);
  }
  return {out, out_stride};
}

}  // namespace visq::engine::VISQ_LEVEL
