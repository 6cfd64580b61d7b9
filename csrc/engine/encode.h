// Rows to bytes and back: visq.runtime.quantizers.
#pragma once
#include "arithmetic.h"
#include "program.h"

namespace visq::engine {

template <class V, bool kZeroByChannel>
VISQ_INLINE void encode_uniform(const Quantizer& q, int64_t row, const float* x, int64_t width, uint8_t* out) {
  const auto token = V::set1(q.inverse_token[row]), low = V::set1(q.low), high = V::set1(q.high);
  auto zero = V::set1(kZeroByChannel ? 0.0f : q.zero_token[row]);
  for (int64_t c = 0; c < width; c += V::W) {
    if (kZeroByChannel) zero = V::load(q.zero + c);
    const auto v = V::rint(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), token));
    Lanes<V>::to_bytes(out + c, clamp<V>(V::add(v, zero), low, high));
  }
}

// Writes whole vectors: `out` has room for the padded width.
template <class V>
VISQ_INLINE void encode_row(const Quantizer& q, int64_t row, const float* x, int64_t width, uint8_t* out) {
  if (q.table) {
    const typename V::Lookup position{q.positions, q.thresholds, q.thresholds_count};
    const auto token = V::set1(q.inverse_token[row]);
    for (int64_t c = 0; c < width; c += V::W)
      Lanes<V>::to_bytes(out + c, position(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), token)));
  } else if (q.zero) {
    encode_uniform<V, true>(q, row, x, width, out);
  } else {
    encode_uniform<V, false>(q, row, x, width, out);
  }
}

// W values from channel c on.
template <class V>
VISQ_INLINE typename V::T decode(const Quantizer& q, int64_t row, int64_t c, const uint8_t* codes) {
  const auto zero = q.zero ? V::load(q.zero + c) : V::set1(q.zero_token[row]);
  const auto x = q.table ? Lanes<V>::pick(q.table, codes) : V::sub(Lanes<V>::bytes(codes), zero);
  return V::mul(V::mul(x, V::load(q.step + c)), V::set1(q.step_token[row]));
}

template <class V>
VISQ_INLINE void decode_row(const Quantizer& q, int64_t row, const uint8_t* codes, int64_t width, float* out) {
  if (q.table) {
    for (int64_t c = 0; c < width; c += V::W) V::store(out + c, decode<V>(q, row, c, codes + c));
    return;
  }
  const auto token = V::set1(q.step_token[row]);
  auto zero = V::set1(q.zero ? 0.0f : q.zero_token[row]);
  for (int64_t c = 0; c < width; c += V::W) {
    if (q.zero) zero = V::load(q.zero + c);
    V::store(out + c, V::mul(V::mul(V::sub(Lanes<V>::bytes(codes + c), zero), V::load(q.step + c)), token));
  }
}

// decode(encode(x)): `out` may not overlap x.
template <class V>
VISQ_INLINE void round_row(const Quantizer& q, int64_t row, const float* x, int64_t width, float* out) {
  if (q.table) {
    const typename V::Lookup value{q.table, q.thresholds, q.thresholds_count};
    const auto inverse = V::set1(q.inverse_token[row]), step = V::set1(q.step_token[row]);
    for (int64_t c = 0; c < width; c += V::W) {
      const auto v = value(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), inverse));
      V::store(out + c, V::mul(V::mul(v, V::load(q.step + c)), step));
    }
    return;
  }
  const auto inverse = V::set1(q.inverse_token[row]), step = V::set1(q.step_token[row]);
  const auto low = V::set1(q.low), high = V::set1(q.high);
  auto zero = V::set1(q.zero ? 0.0f : q.zero_token[row]);
  for (int64_t c = 0; c < width; c += V::W) {
    if (q.zero) zero = V::load(q.zero + c);
    const auto v = V::rint(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), inverse));
    const auto code = V::sub(clamp<V>(V::add(v, zero), low, high), zero);
    V::store(out + c, V::mul(V::mul(code, V::load(q.step + c)), step));
  }
}

// Row `row` of a tensor as floats: in place where it holds floats, else decoded into `room`.
template <class V>
VISQ_INLINE const float* float_row(const Frame& f, const Tensor& t, int64_t row, float* room) {
  if (!t.codes) return f.row<float>(t, row);
  decode_row<V>(*t.codes, row, f.row<uint8_t>(t, row), t.width, room);
  return room;
}

}  // namespace visq::engine
