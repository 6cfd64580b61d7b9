// Encodes values to bytes and decodes them: the codecs of visq.integer.
#pragma once
#include "kernels/arithmetic.h"
#include "program/program.h"

namespace visq::engine::VISQ_LEVEL {

#define VISQ_EACH _Pragma("GCC unroll 8") for (int j = 0; j < U; ++j)

// A codec without a table at one row; its functions work on U vectors from channel c on. It copies the codec's fields,
// because bytes may alias anything and every store of one would make the compiler read them again.
template <class V>
struct RowCodec {
  using T = typename V::T;
  bool by_channel, by_token;
  const float *inverse, *step, *zero;  // zero nullptr: row_zero for all channels
  const int16_t* packed_zero;
  float token, token_step, row_zero, low, high;
  int whole_zero, least, most;

  __attribute__((always_inline)) RowCodec(const Codec& q, int64_t row)
      : by_channel(q.by_channel), by_token(q.by_token), inverse(q.inverse), step(q.step), zero(q.zero),
        packed_zero(q.packed_zero), token(q.inverse_token[row]), token_step(q.step_token[row]),
        row_zero(q.zero_token[row]), low(q.low), high(q.high),
        whole_zero(static_cast<int>(q.zero_token[row])), least(static_cast<int>(q.low)),
        most(static_cast<int>(q.high)) {}

  // Divides x by its scale.
  template <int U>
  __attribute__((always_inline)) void scaled(int64_t c, T* x) const {
    if (by_channel) VISQ_EACH x[j] = V::mul(x[j], V::load(inverse + c + j * V::W));
    if (by_token) VISQ_EACH x[j] = V::mul(x[j], V::set1(token));
  }

  template <int U>
  __attribute__((always_inline)) void zeros(int64_t c, T* z) const {
    VISQ_EACH z[j] = V::set1(row_zero);
    if (zero) VISQ_EACH z[j] = V::load(zero + c + j * V::W);
  }

  // Writes whole vectors, and destroys x.
  template <int U>
  __attribute__((always_inline)) void encode(int64_t c, T* x, uint8_t* out) const {
    scaled<U>(c, x);
    if constexpr (U % 4 == 0) {
      for (int j = 0; j < U; j += 4) {
        auto z01 = V::sset1(whole_zero), z23 = z01;
        if (zero) {
          const int16_t* z = packed_zero + c + j * V::W;
          z01 = V::sload(z), z23 = V::sload(z + 2 * V::W);
        }
        V::round_to_bytes(out + j * V::W, x + j, z01, z23, least, most);
      }
    } else {
      T z[U];
      zeros<U>(c, z);
      VISQ_EACH V::to_bytes(out + j * V::W, clamp<V>(V::add(V::rint(x[j]), z[j]), V::set1(low), V::set1(high)));
    }
  }

  template <int U>
  __attribute__((always_inline)) void decode(int64_t c, const uint8_t* codes, T* x) const {
    T z[U];
    zeros<U>(c, z);
    VISQ_EACH x[j] = V::sub(V::bytes(codes + j * V::W), z[j]);
    VISQ_EACH x[j] = V::mul(x[j], V::load(step + c + j * V::W));
    if (by_token) VISQ_EACH x[j] = V::mul(x[j], V::set1(token_step));
  }

  // Replaces x by decode(encode(x)), and returns its codes as floats.
  template <int U>
  __attribute__((always_inline)) void round(int64_t c, T* x, T* code) const {
    T z[U];
    zeros<U>(c, z);
    scaled<U>(c, x);
    VISQ_EACH code[j] = clamp<V>(V::add(V::rint(x[j]), z[j]), V::set1(low), V::set1(high));
    VISQ_EACH x[j] = V::sub(code[j], z[j]);
    if (by_channel) VISQ_EACH x[j] = V::mul(x[j], V::load(step + c + j * V::W));
    if (by_token) VISQ_EACH x[j] = V::mul(x[j], V::set1(token_step));
  }
};

#undef VISQ_EACH

// Codecs with a table. Calls f(channel, entry) with the nearest entries of the W channels from there on; with q.positions
// for `entries`, with the entries' positions.
template <class V, class F>
VISQ_INLINE void nearest(const Codec& q, int64_t row, const float* x, int64_t width, const float* entries, F f) {
  const typename V::Lookup entry{entries, q.thresholds, q.thresholds_count};
  const auto token = V::set1(q.inverse_token[row]);
  for (int64_t c = 0; c < width; c += V::W) f(c, entry(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), token)));
}

// Writes whole vectors, so `out` has room for the padded width.
template <class V>
VISQ_INLINE void encode_by_table(const Codec& q, int64_t row, const float* x, int64_t width, uint8_t* out) {
  nearest<V>(q, row, x, width, q.positions,
             [out](int64_t c, typename V::T code) { V::to_bytes(out + c, code); });
}

// Writes decode(encode(x)).
template <class V>
VISQ_INLINE void round_by_table(const Codec& q, int64_t row, const float* x, int64_t width, float* out) {
  const auto step = V::set1(q.step_token[row]);
  nearest<V>(q, row, x, width, q.table, [&](int64_t c, typename V::T v) {
    V::store(out + c, V::mul(V::mul(v, V::load(q.step + c)), step));
  });
}

// Decodes W values from channel c on, with or without a table.
template <class V>
VISQ_INLINE typename V::T decode(const Codec& q, int64_t row, int64_t c, const uint8_t* codes) {
  const auto zero = q.zero ? V::load(q.zero + c) : V::set1(q.zero_token[row]);
  const auto x = q.table ? V::pick(q.table, codes) : V::sub(V::bytes(codes), zero);
  const auto value = V::mul(x, V::load(q.step + c));
  return q.by_token ? V::mul(value, V::set1(q.step_token[row])) : value;
}

template <class V>
VISQ_INLINE void decode_row(const Codec& q, int64_t row, const uint8_t* codes, int64_t width, float* out) {
  for (int64_t c = 0; c < width; c += V::W) V::store(out + c, decode<V>(q, row, c, codes + c));
}

// Returns a row of a tensor as floats: in place where it holds floats, else decoded into `room`.
template <class V>
VISQ_INLINE const float* float_row(const Frame& f, const Tensor& t, int64_t row, float* room) {
  if (!t.codec) return f.row<float>(t, row);
  decode_row<V>(*t.codec, row, f.row<uint8_t>(t, row), t.width, room);
  return room;
}

}  // namespace visq::engine::VISQ_LEVEL
