// Self-attention (visq.integer.attention): a block is one head of one sequence. Lanes are keys for the scores, channels
// for the result.
#pragma once
#include "kernels/body.h"

namespace visq::engine::VISQ_LEVEL {

// Scores beyond this count as this, and NaN as the upper bound: every probability is then defined.
constexpr float kLargestScore = 3.0e38f;

// A thread's scratch. In integers two elements of a sum lie side by side, 16 bits each: keys [width / 2][length][2],
// values [length / 2][width][2], and the row of a query [width], of probabilities [length]. In float32 they are
// [width][length] and [length][width].
struct AttentionRoom {
  int64_t length, width;  // padded to whole vectors
  float *keys, *values, *scores, *row, *out;

  VISQ_INLINE AttentionRoom at(const Attention& p, float* scratch) {
    const int64_t length = padded(p.length), width = padded(p.head_width);
    float *keys = scratch, *values = keys + width * length, *scores = values + width * length;
    return {length, width, keys, values, scores, scores + length, scores + length + width};
  }
};

template <class V>
struct Head {
  const Operation& op;
  const Frame& f;
  const Attention& p;
  const AttentionRoom room;
  const int64_t first, channel;  // of the sequence's rows, of the head's channels

  Head(const Operation& o, const Frame& frame, int64_t block)
      : op(o), f(frame), p(o.attention), room(AttentionRoom::at(p, frame.scratch)),
        first(block / p.heads * p.length), channel(block % p.heads * p.head_width) {}

  // Calls to(c, value) for the head's channels of one row.
  template <class F>
  void codes(int input, int64_t row, F to) const {
    const Tensor& t = f.tensors[op.inputs[input]];
    const Codec& q = *t.codec;
    const uint8_t* bytes = f.row<uint8_t>(t, row) + channel;
    for (int64_t c = 0; c < p.head_width; ++c)
      to(c, static_cast<int16_t>(bytes[c] - static_cast<int>(q.zero ? q.zero[channel + c] : q.zero_token[row])));
  }
  template <class F>
  void floats(int input, int64_t row, F to) const {
    const Tensor& t = f.tensors[op.inputs[input]];
    const float* from = float_row<V>(f, t, row, room.out + room.width) + channel;
    for (int64_t c = 0; c < p.head_width; ++c) to(c, from[c]);
  }

  void load_keys_and_values() const {
    __builtin_memset(room.keys, 0, 2 * room.width * room.length * sizeof(float));
    int16_t *keys = reinterpret_cast<int16_t*>(room.keys), *values = reinterpret_cast<int16_t*>(room.values);
    for (int64_t j = 0; j < p.length; ++j) {
      if (p.integers) {
        codes(1, first + j, [&](int64_t c, int16_t x) { keys[(c / 2 * room.length + j) * 2 + c % 2] = x; });
        codes(2, first + j, [&](int64_t c, int16_t x) { values[(j / 2 * room.width + c) * 2 + j % 2] = x; });
      } else {
        floats(1, first + j, [&](int64_t c, float x) { room.keys[c * room.length + j] = x; });
        floats(2, first + j, [&](int64_t c, float x) { room.values[j * room.width + c] = x; });
      }
    }
  }

  // Calls to(column, sums of U vectors) with row times matrix, for all `columns`: sum over k < count of row[k]
  // matrix[k][column]. Integers are added in any order, floats in the order of k.
  template <class F>
  VISQ_INLINE void product(const float* row, const float* matrix, int64_t count, int64_t columns, F to) {
    int64_t c = 0;
    for (; c + 4 * V::W <= columns; c += 4 * V::W) product_of<4>(row, matrix, count, columns, c, to);
    for (; c < columns; c += V::W) product_of<1>(row, matrix, count, columns, c, to);
  }
  template <int U, class F>
  VISQ_INLINE void product_of(const float* row, const float* matrix, int64_t count, int64_t columns, int64_t c, F to) {
    typename V::T sum[U];
    for (int j = 0; j < U; ++j) sum[j] = V::zero();
    for (int64_t k = 0; k < count; ++k) {
      const auto x = V::set1(row[k]);
      for (int j = 0; j < U; ++j)
        sum[j] = V::add(sum[j], V::mul(x, V::load(matrix + k * columns + c + j * V::W)));
    }
    for (int j = 0; j < U; ++j) to(c + j * V::W, sum[j]);
  }
  template <class F>
  VISQ_INLINE void product(const int16_t* row, const int16_t* matrix, int64_t count, int64_t columns, F to) {
    int64_t c = 0;
    for (; c + 4 * V::W <= columns; c += 4 * V::W) product_of<4>(row, matrix, count, columns, c, to);
    for (; c < columns; c += V::W) product_of<1>(row, matrix, count, columns, c, to);
  }
  template <int U, class F>
  VISQ_INLINE void product_of(const int16_t* row, const int16_t* matrix, int64_t count, int64_t columns, int64_t c,
                              F to) {
    typename V::I sum[U];
    for (int j = 0; j < U; ++j) sum[j] = V::izero();
    for (int64_t k = 0; k < (count + 1) / 2; ++k) {
      const auto x = V::spair(row + 2 * k);
      for (int j = 0; j < U; ++j) sum[j] = V::dot16(sum[j], V::sload(matrix + (k * columns + c + j * V::W) * 2), x);
    }
    for (int j = 0; j < U; ++j) to(c + j * V::W, V::to_float(sum[j]));
  }

  // Rounds W values from channel c of a codec on. Returns the values, and their codes less zero points where there is no
  // table.
  VISQ_INLINE typename V::T rounded(const Codec& q, int64_t row, int64_t c, typename V::T x, typename V::T* integers) {
    if (q.table) {
      const typename V::Lookup entry{q.table, q.thresholds, q.thresholds_count};
      x = entry(V::mul(V::mul(x, V::load(q.inverse + c)), V::set1(q.inverse_token[row])));
      return V::mul(V::mul(x, V::load(q.step + c)), V::set1(q.step_token[row]));
    }
    typename V::T code, zero;
    const RowCodec<V> codec(q, row);
    codec.template round<1>(c, &x, &code);
    codec.template zeros<1>(c, &zero);
    *integers = V::sub(code, zero);
    return x;
  }

  // Scores of query i, rounded.
  void score(int64_t i) const {
    const int64_t row = first + i, at = channel / p.head_width * p.length;
    const auto low = V::set1(-kLargestScore), high = V::set1(kLargestScore);
    const auto finish = [&](int64_t j, typename V::T x) {
      x = clamp<V>(x, low, high);
      typename V::T unused;
      V::store(room.scores + j, p.scores ? rounded(*p.scores, row, at + j, x, &unused) : x);
    };
    if (p.integers) {
      int16_t* query = reinterpret_cast<int16_t*>(room.row);
      query[p.head_width] = 0;  // the second element of the last pair, where the width is odd
      codes(0, row, [&](int64_t c, int16_t x) { query[c] = x; });
      const auto scale = V::set1(p.q_scale[row]);
      product(query, reinterpret_cast<const int16_t*>(room.keys), p.head_width, room.length,
              [&](int64_t j, typename V::T sum) {
                finish(j, V::mul(V::mul(sum, scale), V::load_n(p.k_scale + first + j, left(j))));
              });
      return;
    }
    floats(0, row, [&](int64_t c, float x) { room.row[c] = x; });
    product(room.row, room.keys, p.head_width, room.length,
            [&](int64_t j, typename V::T sum) { finish(j, V::mul(sum, V::set1(p.scale))); });
  }

  // How many of W keys from j on there are.
  int left(int64_t j) const { return static_cast<int>(p.length - j < V::W ? p.length - j : V::W); }

  // Turns scores into probabilities, rounded. In integers, room.scores then holds 16-bit numbers.
  void soften(int64_t i) const {
    const int64_t row = first + i, at = channel / p.head_width * p.length, L = p.length;
    float* x = room.scores;
    float largest = x[0];
    for (int64_t j = 1; j < L; ++j) largest = x[j] > largest ? x[j] : largest;
    for (int64_t j = 0; j < L; j += V::W) {
      auto e = V::mul(V::sub(V::load(x + j), V::set1(largest)), V::set1(kLog2e));
      exp2<V, 1>(&e);
      V::store(x + j, e);
    }
    const float sum = row_sum<V>(L, [&](int64_t j, int n) { return V::load_n(x + j, n); });
    const auto inverse = V::div(V::set1(1.0f), V::set1(sum));
    int16_t* shorts = reinterpret_cast<int16_t*>(x);
    for (int64_t j = 0; j < L; j += V::W) {
      auto probability = V::mul(V::load(x + j), inverse), integers = probability;
      if (p.probs) probability = rounded(*p.probs, row, at + j, probability, &integers);
      if (p.integers)
        V::store_shorts(shorts + j, integers);  // behind what is still to be read
      else
        V::store(x + j, probability);
    }
    if (p.integers) shorts[L] = 0;
  }

  void run() const {
    load_keys_and_values();
    const Tensor& y = f.tensors[op.y];
    for (int64_t i = 0; i < p.length; ++i) {
      score(i);
      soften(i);
      const auto write = [&](int64_t c, typename V::T x) { V::store(room.out + c, x); };
      if (p.integers) {
        const auto scale = V::set1(p.p_scale[first + i]);
        product(reinterpret_cast<const int16_t*>(room.scores), reinterpret_cast<const int16_t*>(room.values), p.length,
                room.width, [&](int64_t c, typename V::T sum) {
                  write(c, V::mul(V::mul(sum, V::load(p.v_scale + channel + c)), scale));
                });
      } else {
        product(room.scores, room.values, p.length, room.width, write);
      }
      __builtin_memcpy(f.row<float>(y, first + i) + channel, room.out, p.head_width * sizeof(float));
    }
  }
};

template <class V>
void attention_block(const Operation& op, const Frame& f, int64_t block) {
  Head<V>(op, f, block).run();
}

}  // namespace visq::engine::VISQ_LEVEL
