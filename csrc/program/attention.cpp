// Self-attention, in integers and in float32.
#include "program/engine.h"

namespace visq::engine {
namespace {

const char* const kNames[] = {"q", "k", "v"};

// The largest magnitude of a code less its zero point, whole numbers both.
int64_t magnitude(const Check& need, const Codec& q) {
  float largest = 0;
  const auto look = [&](float zero) {
    need(zero >= -16000 && zero <= 16000, "a zero point is ", zero, ", not between -16000 and 16000");
    largest = zero > largest ? zero : -zero > largest ? -zero : largest;
  };
  for (int64_t c = 0; q.zero && c < q.width; ++c) look(q.zero[c]);
  for (int64_t t = 0; !q.zero && t < q.rows; ++t) look(q.zero_token[t]);
  return static_cast<int64_t>(largest) + 255;
}

}  // namespace

const Codec* Engine::attention_codec(const Check& need, int index, int64_t rows, int64_t width) const {
  if (index < 0) return nullptr;
  need(index < static_cast<int>(codecs_.size()), "codec ", index, " is none of the ", codecs_.size());
  const Codec& q = *codecs_[index];
  need(q.rows == rows && q.width == width, "codec ", index, " is for [", q.rows, ", ", q.width, "], not [", rows, ", ",
       width, "]");
  return &q;
}

Attention& Engine::start_attention(const Check& need, int q, int k, int v, int y, int64_t heads, int64_t length,
                                   int scores, int probs) {
  const Tensor& query = tensor(need, q);
  const int64_t rows = query.rows, width = query.width;
  need(heads >= 1 && heads <= width && width % heads == 0, "its ", width, " channels are not ", heads, " heads");
  need(length >= 1 && rows % length == 0, "its ", rows, " rows are not sequences of ", length);
  need(heads * length <= kMaxSize, heads, " heads of ", length, " keys are more than ", kMaxSize);
  const int inputs[] = {q, k, v};
  Operation& op = start(need, "attention", Operation::kAttention, rows, width);
  for (int i = 0; i < 3; ++i) {
    const Tensor& t = tensor(need, inputs[i]);
    need(t.rows == rows && t.width == width, "tensor ", inputs[i], " (its ", kNames[i], ") is [", t.rows, ", ", t.width,
         "], not [", rows, ", ", width, "]");
    op.inputs[i] = inputs[i];
  }
  const Tensor& out = tensor(need, y);
  need(!out.codec && out.rows == rows && out.width == width, "tensor ", y, " does not take its result: it has codes, or is [",
       out.rows, ", ", out.width, "]");
  op.y = y;
  const int64_t head = width / heads;
  Attention& p = op.attention;
  p = {heads, length, head, false, 0, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  p.scores = attention_codec(need, scores, rows, heads * length);
  p.probs = attention_codec(need, probs, rows, heads * length);
  const int64_t keys = padded(length), channels = padded(head);
  op.extra_floats = 2 * keys * channels + keys + 2 * channels + padded(width) + 64;
  return p;
}

void Engine::int_attention(int q, int k, int v, int y, int64_t heads, int64_t length, Array<float> q_scale,
                           Array<float> k_scale, Array<float> v_scale, Array<float> p_scale, int scores, int probs) {
  const Check need = next_operation("attention");
  const int64_t rows = tensor(need, q).rows, width = tensor(need, q).width;
  int64_t largest[3];
  for (int i = 0; i < 3; ++i) {
    const int index = i == 0 ? q : i == 1 ? k : v;
    const Tensor& t = tensor(need, index);
    need(t.codec && !t.codec->table, "tensor ", index, " (its ", kNames[i], ") has no codes, or they have a table");
    largest[i] = magnitude(need, *t.codec);
  }
  need.count("q_scale", q_scale, rows);
  need.count("k_scale", k_scale, rows);
  need.count("v_scale", v_scale, width);
  need.count("p_scale", p_scale, rows);
  Attention& p = start_attention(need, q, k, v, y, heads, length, scores, probs);
  need(p.probs && !p.probs->table, "its probabilities have no codes, or they have a table");
  constexpr int64_t kEnd = int64_t{1} << 31;
  need(p.head_width * largest[0] * largest[1] < kEnd && length * magnitude(need, *p.probs) * largest[2] < kEnd,
       "its sums may leave 32 bits");
  p.integers = true;
  p.q_scale = copy(q_scale, rows), p.k_scale = copy(k_scale, rows);
  p.v_scale = copy(v_scale, width), p.p_scale = copy(p_scale, rows);
}

void Engine::float_attention(int q, int k, int v, int y, int64_t heads, int64_t length, float scale, int scores,
                             int probs) {
  const Check need = next_operation("attention");
  start_attention(need, q, k, v, y, heads, length, scores, probs).scale = scale;
}

}  // namespace visq::engine
