// Selective scans, in fixed point and in float32.
#include <algorithm>
#include <cmath>

#include "program/engine.h"

namespace visq::engine {
namespace {

const char* const kInputNames[] = {"u", "delta", "B", "C"};

// Coefficients of a power of two descend from at most `most`: then no difference is negative, and the power is at most
// the first of them.
void need_power(const Check& need, Array<int32_t> power, int64_t at, int most) {
  for (int64_t i = at; i < at + 4; ++i) {
    const int32_t limit = i > at ? power.at(i - 1) : most;
    need(power.at(i) >= 0 && power.at(i) <= limit, "coefficient ", i, " of its power of two is ", power.at(i),
         ", not between 0 and ", limit);
  }
}

void need_range(const Check& need, const char* what, int low, int high, int least, int most) {
  need(low >= least && high <= most && low <= high, what, " from ", low, " to ", high, " leaves ", least, " to ", most);
}

}  // namespace

void Engine::scan_shape(const Check& need, Operation& op, int u, int delta, int B, int C, int y) {
  const int64_t L = op.rows, D = op.width, N = tensor(need, B).width;
  const int indices[4] = {u, delta, B, C};
  for (int i = 0; i < 4; ++i) {
    const Tensor& t = tensor(need, indices[i]);
    const int64_t width = i < 2 ? D : N;
    need(t.rows == L && t.width == width, "tensor ", indices[i], " (its ", kInputNames[i], ") is [", t.rows, ", ",
         t.width, "], not [", L, ", ", width, "]");
    op.inputs[i] = indices[i];
  }
  const Tensor& out = tensor(need, y);
  need(out.rows == L && out.width == D, "a scan's y does not fit: tensor ", y, " is [", out.rows, ", ", out.width,
       "], not [", L, ", ", D, "]");
  need(!(out.codec && out.codec->table), "a scan's y does not fit: the codes of tensor ", y, " have a table");
  op.y = y;
  if (out.codec) widths_[0] = -1;
}

// Takes in what all scans in fixed point have. C is multiplied with numbers of at most `largest`, in units of 2^-point of
// a code.
void Engine::scan_steps(const Check& need, ScanSteps& p, Operation& op, const ScanArrays& s, bool reverse, int point,
                        int64_t largest, int most_lift) {
  const int64_t L = op.rows, D = op.width, N = tensor(need, op.inputs[2]).width;
  const Codec* codec = tensor(need, op.inputs[3]).codec;
  need(codec && !codec->zero && !codec->table, "tensor ", op.inputs[3],
       " (its C) has no codes, or their zero points go by channel, or they have a table");
  need.count("input_channel", s.input_channel, D);
  need.count("y_channel", s.y_channel, D);
  need.count("beta_scale", s.beta_scale, L);
  need.count("input_step", s.input_step, L);
  need.count("lift", s.lift, L);
  need.count("y_step", s.y_step, L);
  // These limits keep every intermediate value in its lane.
  int64_t largest_C = 255;
  for (int64_t t = 0; t < L; ++t) {
    need(s.lift.at(t) >= 0 && s.lift.at(t) <= most_lift, "lift ", t, " is ", s.lift.at(t), ", not between 0 and ",
         most_lift);
    const float zero = codec->zero_token[t];
    need(zero >= -32000 && zero <= 32000, "zero point ", t, " of C is ", zero, ", not between -32000 and 32000");
    const int64_t reach = static_cast<int64_t>(std::fabs(zero)) + 255;
    if (reach > largest_C) largest_C = reach;
  }
  need(padded(N, 2) * largest * largest_C < (int64_t{1} << 31), "sums of ", N, " products of up to ", largest, " * ",
       largest_C, " may leave 32 bits");

  p.L = L, p.C = padded(D), p.N = padded(N, 2), p.reverse = reverse;
  p.input_channel = copy(s.input_channel, p.C);
  // Exact: a product with a power of two.
  float* unit = allocate<float>(p.C);
  for (int64_t c = 0; c < D; ++c) unit[c] = std::ldexp(s.y_channel.at(c), -point);
  p.y_channel = unit;
  p.beta_scale = copy(s.beta_scale, L), p.input_step = copy(s.input_step, L), p.y_step = copy(s.y_step, L);
  p.lift = copy(s.lift, L);
  op.extra_floats = padded(L * p.N + kChannels, 32) + p.N * kChannels + 64;
}

// Takes in the exponents of scans without a ladder.
void Engine::scan_exponents(const Check& need, ScanSteps& p, const Operation& op, const ExponentArrays& s) {
  const int64_t D = op.width, N = tensor(need, op.inputs[2]).width, lanes = kernels_->lanes;
  need.count("a", s.a, D * N);
  need.count("delta_scale", s.delta_scale, D);
  need(s.shift >= 16 && s.shift <= 31, "its shift is ", s.shift, ", not between 16 and 31");
  uint16_t* packed = allocate<uint16_t>(p.C * p.N);
  for (int64_t c = 0; c < D; ++c) {
    uint16_t* to = packed + c / lanes * lanes * p.N + c % lanes * 2;
    for (int64_t n = 0; n < N; ++n) {
      const int32_t value = s.a.at(c * N + n);
      if (value < 0 || value > 65535) need(false, "a[", c, ", ", n, "] is ", value, ", not between 0 and 65535");
      to[n / 2 * lanes * 2 + n % 2] = static_cast<uint16_t>(value);
    }
  }
  p.a = packed, p.shift = s.shift, p.delta_scale = copy(s.delta_scale, p.C);
}

void Engine::fused_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                        const ExponentArrays& exponents, Array<int32_t> power, int state_low, int state_high, int point) {
  const Check need = next_operation("fused scan");
  const int64_t L = tensor(need, u).rows;
  need(point >= 6 && point <= 12, "its point is ", point, ", not between 6 and 12");
  const int end = 1 << (13 - point);
  need_range(need, "its state", state_low, state_high, -end, end - 1);
  Operation& op = start(need, "fused scan", Operation::kFusedScan, L, tensor(need, u).width);
  scan_shape(need, op, u, delta, B, C, y);
  FusedScan& p = op.fused_scan;
  scan_steps(need, p.steps, op, arrays, reverse, point, 32767, 2);
  scan_exponents(need, p.steps, op, exponents);
  need.count("power", power, 4 * L);
  int16_t* pairs = allocate<int16_t>(8 * L);
  for (int64_t t = 0; t < L; ++t) {
    need_power(need, power, 4 * t, 32767);
    for (int64_t i = 0; i < 8; ++i) pairs[8 * t + i] = static_cast<int16_t>(power.at(4 * t + i / 2));
  }
  p.power = pairs, p.state_low = state_low, p.state_high = state_high, p.point = point;
}

void Engine::ladder_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                         Array<float> rate, Array<int32_t> ratio, int state_low, int state_high, int point) {
  const Check need = next_operation("ladder scan");
  const int64_t L = tensor(need, u).rows, D = tensor(need, u).width;
  need(point >= 6 && point <= 12, "its point is ", point, ", not between 6 and 12");
  const int end = 1 << (13 - point);
  need_range(need, "its state", state_low, state_high, -end, end - 1);
  Operation& op = start(need, "ladder scan", Operation::kLadderScan, L, D);
  scan_shape(need, op, u, delta, B, C, y);
  LadderScan& p = op.ladder_scan;
  scan_steps(need, p.steps, op, arrays, reverse, point, 32767, 2);
  need.count("rate", rate, D);
  need.count("ratio", ratio, L);
  int16_t* ratios = allocate<int16_t>(L);
  for (int64_t t = 0; t < L; ++t) {
    need(ratio.at(t) >= 0 && ratio.at(t) <= 32767, "ratio ", t, " is ", ratio.at(t), ", not between 0 and 32767");
    ratios[t] = static_cast<int16_t>(ratio.at(t));
  }
  p.rate = copy(rate, p.steps.C), p.ratio = ratios;
  p.state_low = state_low, p.state_high = state_high, p.point = point;
}

void Engine::fixed_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanNumbers& s,
                        const ScanArrays& arrays, const ExponentArrays& exponents, Array<int32_t> abar_power, Array<int16_t> abar_lut,
                        Array<int16_t> bbar_lut, Array<float> drive_channel, Array<int32_t> decay) {
  const Check need = next_operation("scan");
  const int64_t L = tensor(need, u).rows, D = tensor(need, u).width;
  need.count("drive_channel", drive_channel, D);
  need.count("decay", decay, L);
  need.count("abar_power", abar_power, 4);
  need(abar_lut.size == 0 || abar_lut.size == 32768, "abar_lut has ", abar_lut.size, " elements, not 0 or 32768");
  need(bbar_lut.size == 0 || bbar_lut.size == 65536, "bbar_lut has ", bbar_lut.size, " elements, not 0 or 65536");
  need(s.point >= 1 && s.point <= 10, "its point is ", s.point, ", not between 1 and 10");
  need_range(need, "its state", s.state_low, s.state_high, -(2048 >> s.point), (2048 >> s.point) - 1);
  need(s.abar_bits >= 1 && s.abar_bits <= 8, "Abar has ", s.abar_bits, " bits, not 1 to 8");
  need(s.abar_fraction >= 0 && s.abar_fraction <= 15, "Abar has ", s.abar_fraction, " bits of a fraction, not 0 to 15");
  need(s.bbar_bits >= 2 && s.bbar_bits <= 8, "Bbar has ", s.bbar_bits, " bits, not 2 to 8");
  Operation& op = start(need, "scan", Operation::kFixedScan, L, D);
  scan_shape(need, op, u, delta, B, C, y);
  FixedScan& p = op.fixed_scan;
  scan_steps(need, p.steps, op, arrays, reverse, s.point, 2048, 3);
  scan_exponents(need, p.steps, op, exponents);
  const int half = s.abar_fraction ? 1 << (s.abar_fraction - 1) : 0, bbar_end = 1 << (s.bbar_bits - 1);
  int64_t largest_abar = 0;
  if (!abar_lut.size) {
    need(half, "Abar has neither a table nor a fraction");
    need_range(need, "Abar", 0, s.abar_high, 0, (1 << s.abar_bits) - 1);
    largest_abar = int64_t{s.abar_high} << (16 - s.abar_bits);
  }
  if (!bbar_lut.size) need_range(need, "Bbar", s.bbar_low, s.bbar_high, -bbar_end, bbar_end - 1);
  for (int64_t i = 0; i < abar_lut.size; ++i)
    largest_abar = std::max<int64_t>(largest_abar, static_cast<uint16_t>(abar_lut.at(i)));
  need_power(need, abar_power, 0, 65535 - half);
  uint16_t* kept = allocate<uint16_t>(L);
  for (int64_t t = 0; t < L; ++t) {
    need(decay.at(t) >= 0 && decay.at(t) <= 65535 && (largest_abar * decay.at(t)) >> 16 <= 32767, "decay ", t, " is ",
         decay.at(t), ", which leaves 16 bits, or does so times Abar's ", largest_abar);
    kept[t] = static_cast<uint16_t>(decay.at(t));
  }
  p.decay = kept;
  for (int64_t i = 0; i < 4; ++i) p.abar_power[i] = abar_power.at(i);
  p.abar_fraction = s.abar_fraction, p.abar_high = s.abar_high, p.abar_bits = s.abar_bits;
  p.bbar_bits = s.bbar_bits;
  if (!bbar_lut.size) p.bbar_low = s.bbar_low, p.bbar_high = s.bbar_high;  // unchecked where a table takes their place
  p.state_low = s.state_low, p.state_high = s.state_high, p.point = s.point;
  p.abar_table = scan_table(abar_lut, 0), p.bbar_table = scan_table(bbar_lut, -32768);
  for (int64_t i = 0; i < bbar_lut.size; ++i)
    need(bbar_lut.at(i) >= -32767, "bbar_lut[", i, "] is ", bbar_lut.at(i), ", below -32767");
  p.aligned = !abar_lut.size && !bbar_lut.size && exponents.shift == 16 && s.abar_fraction == 16 - s.abar_bits &&
              (abar_power.at(0) + half) >> s.abar_fraction <= s.abar_high;
  p.drive_channel = copy(drive_channel, p.steps.C);
}

// Finds the steps of a table whose first entry belongs to the number `least`.
ScanTable Engine::scan_table(Array<int16_t> lut, int least) {
  if (!lut.size) return {nullptr, 0, nullptr, nullptr};
  std::vector<int16_t> thresholds, values = {lut.at(0)};
  for (int64_t i = 1; i < lut.size; ++i)
    if (lut.at(i) != lut.at(i - 1)) thresholds.push_back(static_cast<int16_t>(i + least)), values.push_back(lut.at(i));
  const int64_t steps = static_cast<int64_t>(thresholds.size());
  const int16_t* whole = copy(lut, lut.size);
  if (steps > kManySteps) return {whole, steps, nullptr, nullptr};
  // The rest repeats the last value.
  const bool few = steps <= kFewSteps;
  const size_t entries = few ? kFewSteps + 1 : kManySteps + 1, groups = few ? entries : entries / 4;
  thresholds.resize(entries, 32767), values.resize(entries, lut.at(lut.size - 1));
  int16_t *packed_thresholds = allocate<int16_t>(entries), *packed_values = allocate<int16_t>(entries);
  for (size_t i = 0; i < entries; ++i) {
    const size_t to = few ? i : i % 4 * groups + i / 4;
    packed_thresholds[to] = thresholds[i], packed_values[to] = values[i];
  }
  return {whole, steps, packed_thresholds, packed_values};
}

FactorCodec Engine::factor(const Check& need, const char* what, const FactorArrays& arrays) {
  need(arrays.kind >= 0 && arrays.kind <= 2, what, " has a codec of kind ", arrays.kind, ", not 0 to 2");
  const bool table = arrays.kind == FactorCodec::kTable;
  need(!table || (arrays.table.size >= 1 && arrays.table.size <= 256 &&
                  arrays.thresholds.size == arrays.table.size - 1),
       what, " has a table of ", arrays.table.size, " values with ", arrays.thresholds.size, " thresholds");
  return {static_cast<FactorCodec::Kind>(arrays.kind), arrays.inverse, arrays.low, arrays.high, arrays.step,
          copy(table ? arrays.table : Array<float>{nullptr, 0}, 256),
          copy(table ? arrays.thresholds : Array<float>{nullptr, 0}, 256),
          table ? static_cast<int>(arrays.thresholds.size) : 0};
}

void Engine::float_scan(int u, int delta, int B, int C, int y, bool reverse, Array<float> A,
                        const FactorArrays& abar, const FactorArrays& bbar, Array<float> bbar_channel,
                        Array<float> bbar_inverse, Array<float> step, Array<float> scale, float low, float high,
                        bool read_quantized) {
  const Check need = next_operation("float scan");
  const int64_t L = tensor(need, u).rows, D = tensor(need, u).width, N = tensor(need, B).width;
  Operation& op = start(need, "float scan", Operation::kFloatScan, L, D);
  scan_shape(need, op, u, delta, B, C, y);
  need.count("A", A, D * N);
  need.count("bbar_channel", bbar_channel, D);
  need.count("bbar_inverse", bbar_inverse, D);
  need(step.size == 0 || step.size == L, "step has ", step.size, " elements, not 0 or ", L);
  need.count("scale", scale, step.size ? D * N : 0);
  float *rows_A = allocate<float>(padded(D) * N), *rows_scale = allocate<float>(padded(D) * N);
  for (int64_t i = 0; i < padded(D) * N; ++i) rows_scale[i] = 1.0f;
  for (int64_t c = 0; c < D; ++c)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t to = c / kChannels * kChannels * N + n * kChannels + c % kChannels;
      rows_A[to] = A.at(c * N + n);
      if (scale.size) rows_scale[to] = scale.at(c * N + n);
    }
  op.float_scan = {L, padded(D), N, L, reverse, rows_A, factor(need, "Abar", abar), factor(need, "Bbar", bbar),
                   copy(bbar_channel, padded(D)), copy(bbar_inverse, padded(D)),
                   step.size ? copy(step, L) : nullptr, rows_scale, low, high, read_quantized};
  op.extra_floats = padded(N) * (kChannels + 2) + 64;
}

void Engine::sequences(int64_t length) {
  Operation& op = current();
  const Check need("float scan", static_cast<int64_t>(drafts_.size()) - 1, -1);
  need(op.kind == Operation::kFloatScan, "is no scan in float32");
  need(length >= 1 && op.rows % length == 0, "its ", op.rows, " steps are not sequences of ", length);
  op.float_scan.length = length;
}

}  // namespace visq::engine
