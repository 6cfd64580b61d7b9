// Rows to bytes and back: visq.runtime.quantizers.
#pragma once
#include "arithmetic.h"
#include "program.h"

namespace visq::engine {

// What a uniform quantizer has: scales along channels, along rows (or one that is not 1), zero points along channels.
template <bool kChannel, bool kToken, bool kZero>
struct Shape {
  static constexpr bool by_channel = kChannel, by_token = kToken, zeros = kZero;
};

// f(Shape of the quantizer), so that loops over a row need not ask.
template <class F>
VISQ_INLINE void with_shape(const Quantizer& q, F f) {
  if (q.zero)
    q.by_token ? f(Shape<true, true, true>{}) : f(Shape<true, false, true>{});
  else if (q.by_channel)
    q.by_token ? f(Shape<true, true, false>{}) : f(Shape<true, false, false>{});
  else
    q.by_token ? f(Shape<false, true, false>{}) : f(Shape<false, false, false>{});
}

// x * inverse, without the factors that are 1.
template <class V, class S>
VISQ_INLINE typename V::T scaled(const Quantizer& q, typename V::T token, const float* x, int64_t c) {
  auto v = V::load(x + c);
  if constexpr (S::by_channel) v = V::mul(v, V::load(q.inverse + c));
  return S::by_token ? V::mul(v, token) : v;
}

template <class V>
VISQ_INLINE void encode_uniform(const Quantizer& q, int64_t row, const float* x, int64_t width, uint8_t* out) {
  const auto token = V::set1(q.inverse_token[row]), low = V::set1(q.low), high = V::set1(q.high);
  with_shape(q, [&](auto shape) {
    using S = decltype(shape);
    auto zero = V::set1(q.zero_token[row]);
    int64_t c = 0;
    if constexpr (!S::zeros) {
      const int whole = static_cast<int>(q.zero_token[row]), least = static_cast<int>(q.low),
                most = static_cast<int>(q.high);
      for (; c + 4 * V::W <= width; c += 4 * V::W) {
        const typename V::T v[4] = {scaled<V, S>(q, token, x, c), scaled<V, S>(q, token, x, c + V::W),
                                    scaled<V, S>(q, token, x, c + 2 * V::W), scaled<V, S>(q, token, x, c + 3 * V::W)};
        Lanes<V>::round_to_bytes(out + c, v, whole, least, most);
      }
    }
    for (; c < width; c += V::W) {
      if constexpr (S::zeros) zero = V::load(q.zero + c);
      Lanes<V>::to_bytes(out + c, clamp<V>(V::add(V::rint(scaled<V, S>(q, token, x, c)), zero), low, high));
    }
  });
}

// Writes whole vectors: `out` has room for the padded width.
template <class V>
VISQ_INLINE void encode_row(const Quantizer& q, int64_t row, const float* x, int64_t width, uint8_t* out) {
  if (q.table) {
    const typename V::Lookup position{q.positions, q.thresholds, q.thresholds_count};
    const auto token = V::set1(q.inverse_token[row]);
    for (int64_t c = 0; c < width; c += V::W)
      Lanes<V>::to_bytes(out + c, position(V::mul(V::mul(V::load(x + c), V::load(q.inverse + c)), token)));
  } else {
    encode_uniform<V>(q, row, x, width, out);
  }
}

// W values from channel c on.
template <class V>
VISQ_INLINE typename V::T decode(const Quantizer& q, int64_t row, int64_t c, const uint8_t* codes) {
  const auto zero = q.zero ? V::load(q.zero + c) : V::set1(q.zero_token[row]);
  const auto x = q.table ? Lanes<V>::pick(q.table, codes) : V::sub(Lanes<V>::bytes(codes), zero);
  const auto value = V::mul(x, V::load(q.step + c));
  return q.by_token ? V::mul(value, V::set1(q.step_token[row])) : value;
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
  with_shape(q, [&](auto shape) {
    using S = decltype(shape);
    auto zero = V::set1(q.zero_token[row]);
    for (int64_t c = 0; c < width; c += V::W) {
      if constexpr (S::zeros) zero = V::load(q.zero + c);
      const auto v = V::rint(scaled<V, S>(q, inverse, x, c));
      auto value = V::sub(clamp<V>(V::add(v, zero), low, high), zero);
      if constexpr (S::by_channel) value = V::mul(value, V::load(q.step + c));
      V::store(out + c, S::by_token ? V::mul(value, step) : value);
    }
  });
}

// Row `row` of a tensor as floats: in place where it holds floats, else decoded into `room`.
template <class V>
VISQ_INLINE const float* float_row(const Frame& f, const Tensor& t, int64_t row, float* room) {
  if (!t.codes) return f.row<float>(t, row);
  decode_row<V>(*t.codes, row, f.row<uint8_t>(t, row), t.width, room);
  return room;
}

}  // namespace visq::engine
