// What an operation computes rows from: shapes are checked, parameters packed as the kernels want them.
#include <algorithm>
#include <cmath>

#include "engine.h"

namespace visq::engine {
namespace {

// Windows on a side of a map; each meets the map.
int64_t windows(int64_t side, int64_t kernel, int64_t stride, int64_t padding) {
  need(padding >= 0 && padding < kernel && kernel <= side + 2 * padding, "windows that lie outside");
  return (side + 2 * padding - kernel) / stride + 1;
}

bool fits_nibbles(Array<int8_t> weight) {
  return std::all_of(weight.data, weight.data + weight.size, [](int8_t w) { return -8 <= w && w <= 7; });
}

int64_t square_side(int64_t rows) {
  int64_t side = 1;
  while (side * side < rows) ++side;
  need(side * side == rows, "a map is not square");
  return side;
}

}  // namespace

Operation& Engine::start(Operation::Kind kind, int64_t rows, int64_t width) {
  need(!finished_, "the program is finished");
  need_size(rows);
  if (kind != Operation::kRows) need_size(width);
  building_.push_back(std::make_unique<Building>());
  Operation& op = building_.back()->op;
  op = Operation{};
  op.kind = kind, op.rows = rows, op.width = width, op.body_rows = 1;
  widths_.assign(kRegisters, -1);
  slices_.clear();
  for (int reg = 0; reg < kRegisters; ++reg) slices_.push_back({reg, 0});
  if (kind != Operation::kRows) widths_[0] = width;
  op.tile_floats = is_scan(kind) || kind == Operation::kRows ? 0 : kernels_->rows * padded(width);
  return op;
}

Operation& Engine::current() {
  need(!building_.empty() && !finished_, "no operation was started");
  return building_.back()->op;
}

void Engine::patches(int64_t rows, int64_t width, int input, int64_t patch, int64_t stride, int64_t padding) {
  need_size(patch);
  need_size(stride);
  const int64_t side = input < 0 ? size_ : square_side(tensor(input).rows);
  const int64_t channels = input < 0 ? channels_ : tensor(input).width, on_a_side = windows(side, patch, stride, padding);
  need(rows == on_a_side * on_a_side && width == channels * patch * patch, "patches have another shape");
  Operation& op = start(Operation::kPatches, rows, width);
  op.inputs[0] = input;
  op.patch = patch, op.patch_stride = stride, op.padding = padding, op.side = side;
  op.extra_floats = input < 0 ? 0 : padded(channels);
}

void Engine::transpose(int input, int64_t height, int64_t width) {
  const Tensor& x = tensor(input);
  need_size(height);
  need_size(width);
  need(height * width == x.rows, "a map has another number of rows");
  Operation& op = start(Operation::kTranspose, x.rows, x.width);
  op.inputs[0] = input, op.map_height = height, op.map_width = width;
}

void Engine::mean(int input) {
  const int64_t width = tensor(input).width;
  Operation& op = start(Operation::kMean, 1, width);
  op.inputs[0] = input, op.extra_floats = padded(width);
}

void Engine::concat(int64_t rows, int64_t width) { start(Operation::kConcat, rows, width); }

void Engine::concat_part(int index, int64_t first, int64_t count, Array<float> constant) {
  const Operation& op = current();
  need(op.kind == Operation::kConcat && count >= 1 && first >= 0, "a part does not fit");
  Part part = {index, first, count, nullptr};
  if (index < 0) {
    need(count == 1 && constant.size == op.width, "a constant part does not fit");
    part.constant = keep(constant, op.width);
  } else {
    const Tensor& t = tensor(index);
    need(t.width == op.width && count <= t.rows && first <= t.rows - count, "a part does not fit");
  }
  building_.back()->parts.push_back(part);
}

void Engine::rows(int64_t rows) { start(Operation::kRows, rows, 0); }

// [panel][k][block][lane], zero where N is padded; weight(n, k) = weight[n * stride_n + k * stride_k].
const float* Engine::pack_floats(const float* weight, int64_t N, int64_t K, int64_t stride_n, int64_t stride_k) {
  const int64_t lanes = kernels_->lanes, blocks = padded(N) / lanes, panel = kernels_->panel;
  float* packed = keep<float>(padded(N) * K);
  float* to = packed;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t width = blocks - b < panel ? blocks - b : panel;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = b * lanes; n < (b + width) * lanes; ++n)
        *to++ = n < N ? weight[n * stride_n + k * stride_k] : 0.0f;
  }
  return packed;
}

IntLinear& Engine::start_int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                                    Array<float> token, Array<float> bias, bool wide) {
  const Tensor& x = tensor(input);
  const int64_t N = width, K = x.width;
  need_size(N);
  need(x.codes && x.rows == rows && weight.size == N * K, "a linear layer does not fit its input");
  need(scale.size == N && bias.size == N && token.size == rows, "a linear layer's scales do not fit");
  Operation& op = start(Operation::kIntLinear, rows, width);
  op.inputs[0] = input;
  IntLinear& p = op.int_linear;
  p.K = K, p.N = padded(N), p.wide = wide;
  p.tiled = !wide && kernels_->tiles(rows, K);
  p.nibbles = !wide && !p.tiled && fits_nibbles(weight);
  const int64_t lanes = kernels_->lanes, step = wide ? 2 : p.nibbles ? 4 : kernels_->step, panel = kernels_->panel;
  const int64_t parts = p.nibbles ? 2 : 1;  // steps that share an element of `packed`
  const int64_t each = step * parts, count = padded(K, p.tiled ? 64 : each) / each, blocks = p.N / lanes;
  int8_t* bytes = step == 4 ? keep<int8_t>(p.N * count * step) : nullptr;
  int16_t* shorts = step == 4 ? nullptr : keep<int16_t>(p.N * count * step);
  p.packed = bytes ? static_cast<const void*>(bytes) : shorts;
  int32_t* sums = keep<int32_t>(p.N);
  int64_t to = 0;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t in_panel = blocks - b < panel ? blocks - b : panel;
    for (int64_t s = 0; s < count; ++s)
      for (int64_t n = b * lanes; n < (b + in_panel) * lanes; ++n)
        for (int64_t k = s * each; k < s * each + step; ++k, ++to) {
          const auto w = [&](int64_t at) -> int32_t { return n < N && at < K ? weight.at(n * K + at) : 0; };
          const int32_t element = p.nibbles ? (w(k) & 15) | (w(k + step) & 15) << 4 : w(k);
          bytes ? static_cast<void>(bytes[to] = static_cast<int8_t>(element))
                : static_cast<void>(shorts[to] = static_cast<int16_t>(element));
          sums[n] += w(k) + (p.nibbles ? w(k + step) : 0);
        }
  }
  p.row_sums = sums;
  p.scale = keep(scale, p.N), p.bias = keep(bias, p.N), p.token = keep(token, rows);
  if (step == 2) op.extra_floats = kernels_->rows * x.stride / 2;
  return p;
}

void Engine::int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                        Array<float> token, Array<int32_t> zero, Array<float> bias) {
  need(zero.size == rows, "a linear layer's zero points do not fit");
  // |byte - zero| <= 2^16 below, so that sums stay inside 32 bits.
  int64_t largest = 255;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t z = zero.at(i), reach = z < 0 ? 255 - z : z > 255 ? z : 255;
    if (reach > largest) largest = reach;
  }
  need(tensor(input).width * largest * 128 < (int64_t{1} << 31), "a linear layer's sums may leave 32 bits");
  start_int_linear(rows, width, input, weight, scale, token, bias, false).zero = keep(zero, rows);
}

void Engine::wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                         Array<float> token, Array<float> bias, Array<int16_t> values, Array<int16_t> offset,
                         Array<int16_t> factor) {
  const int64_t K = tensor(input).width;
  need((values.size == 0 || values.size == 256) && offset.size == K && factor.size == K,
       "a linear layer's values do not fit");
  int64_t least = values.size ? values.at(0) : 0, most = values.size ? values.at(0) : 255, sum = 0;
  for (int64_t i = 0; i < values.size; ++i) {
    if (values.at(i) < least) least = values.at(i);
    if (values.at(i) > most) most = values.at(i);
  }
  for (int64_t k = 0; k < K; ++k) {
    const int64_t low = (least - offset.at(k)) * factor.at(k), high = (most - offset.at(k)) * factor.at(k);
    need(factor.at(k) >= 0 && low >= -32768 && high <= 32767, "a linear layer's values leave 16 bits");
    sum += 128 * (-low > high ? -low : high);
  }
  need(sum < (int64_t{1} << 31), "a linear layer's sums may leave 32 bits");
  IntLinear& p = start_int_linear(rows, width, input, weight, scale, token, bias, true);
  p.values = values.size ? keep(values, 256) : nullptr;
  p.offset = keep(offset, K), p.factor = keep(factor, K), p.zero = keep<int32_t>(rows);
}

void Engine::float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias) {
  const Tensor& x = tensor(input);
  need_size(width);
  need(x.rows == rows && weight.size == width * x.width && bias.size == width, "a linear layer does not fit its input");
  Operation& op = start(Operation::kFloatLinear, rows, width);
  op.inputs[0] = input;
  op.float_linear = {x.width, padded(width), pack_floats(weight.data, width, x.width, x.width, 1),
                     keep(bias, padded(width))};
  if (x.codes) op.extra_floats = kernels_->rows * padded(x.width);
}

void Engine::int_conv(int input, Array<int8_t> weight, Array<float> scale, Array<int32_t> zero, Array<float> bias,
                      bool reverse) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, K = weight.size / C, stride = padded(C);
  need(x.codes && K >= 1 && K <= 64 && weight.size == K * C, "a convolution does not fit its input");
  need(scale.size == C && zero.size == C && bias.size == C, "a convolution's scales do not fit");
  Operation& op = start(Operation::kIntConv, x.rows, C);
  op.inputs[0] = input;
  int32_t *taps = keep<int32_t>(K * stride), *correction = keep<int32_t>((K + 1) * stride);
  for (int64_t c = 0; c < C; ++c) {
    need(zero.at(c) >= -65536 && zero.at(c) <= 65536, "a zero point is out of range");
    int32_t sum = 0;
    for (int64_t k = K - 1; k >= 0; --k) {
      sum += weight.at(c * K + k);
      // The tap as the low half of a lane, for a 16-bit multiply-add with a byte: the high half meets zero.
      taps[k * stride + c] = weight.at(c * K + k);
      correction[k * stride + c] = zero.at(c) * sum;
    }
  }
  int8_t* four = K <= 4 && kernels_->step == 4 ? keep<int8_t>(4 * padded(C, 64)) : nullptr;
  for (int64_t c = 0; four && c < C; ++c)
    for (int64_t k = 0; k < K; ++k) four[c * 4 + 4 - K + k] = weight.at(c * K + k);
  op.conv = {K, reverse, keep(bias, C), nullptr, taps, four, correction, keep(scale, C)};
}

void Engine::float_conv(int input, Array<float> weight, Array<float> bias, bool reverse) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, K = weight.size / C, stride = padded(C);
  need(K >= 1 && K <= 64 && weight.size == K * C && bias.size == C, "a convolution does not fit its input");
  Operation& op = start(Operation::kFloatConv, x.rows, C);
  op.inputs[0] = input;
  float* taps = keep<float>(K * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < K; ++k) taps[k * stride + c] = weight.at(c * K + k);
  op.conv = {K, reverse, keep(bias, C), taps, nullptr, nullptr, nullptr, nullptr};
  if (x.codes) op.extra_floats = (kernels_->rows + K) * stride;
}

Conv2d& Engine::conv2d(Operation::Kind kind, int input, int64_t kernel, int64_t padding) {
  const Tensor& x = tensor(input);
  need(kernel >= 1 && kernel <= kMaxKernel, "a kernel is out of range");
  const int64_t side = square_side(x.rows), out_side = windows(side, kernel, 1, padding);
  Operation& op = start(kind, out_side * out_side, x.width);
  op.inputs[0] = input;
  op.conv2d = {kernel, padding, side, out_side, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  return op.conv2d;
}

void Engine::int_conv2d(int input, int64_t kernel, int64_t padding, Array<int8_t> weight, Array<float> scale,
                        Array<int32_t> zero, Array<float> bias) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = conv2d(Operation::kIntConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need(x.codes && weight.size == taps * C, "a convolution does not fit its input");
  need(scale.size == C && zero.size == C && bias.size == C, "a convolution's scales do not fit");
  // 15 * 15 * (65,536 + 255) * 128 < 2^31.
  for (int64_t c = 0; c < C; ++c) need(zero.at(c) >= -65536 && zero.at(c) <= 65536, "a zero point is out of range");
  // A tap as the low half of a lane, for a 16-bit multiply-add with a byte: the high half meets zero.
  int32_t *packed = keep<int32_t>(taps * stride), *sums = keep<int32_t>(stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) {
      packed[k * stride + c] = weight.at(c * taps + k);
      sums[c] += weight.at(c * taps + k);
    }
  p.taps = packed, p.tap_sums = sums;
  p.zero = keep(zero, C), p.scale = keep(scale, C), p.bias = keep(bias, C);
}

void Engine::float_conv2d(int input, int64_t kernel, int64_t padding, Array<float> weight, Array<float> bias) {
  const Tensor& x = tensor(input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = conv2d(Operation::kFloatConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need(weight.size == taps * C && bias.size == C, "a convolution does not fit its input");
  float* packed = keep<float>(taps * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) packed[k * stride + c] = weight.at(c * taps + k);
  p.weight = packed, p.bias = keep(bias, C);
  current().extra_floats = stride;
}

void Engine::scan_shape(Operation& op, int u, int delta, int B, int C, int y) {
  const int64_t L = op.rows, D = op.width;
  for (const int index : {u, delta})
    need(tensor(index).rows == L && tensor(index).width == D, "a scan's shapes differ");
  for (const int index : {B, C})
    need(tensor(index).rows == L && tensor(index).width == tensor(B).width, "a scan's shapes differ");
  op.inputs[0] = u, op.inputs[1] = delta, op.inputs[2] = B, op.inputs[3] = C;
  const Tensor& out = tensor(y);
  need(out.rows == L && out.width == D && !(out.codes && out.codes->table), "a scan's y does not fit");
  op.y = y;
  if (out.codes) widths_[0] = -1;
}

// What the scans in fixed point share. What C is multiplied with is in units of 2^-point of a code, at most `largest`.
void Engine::scan_steps(ScanSteps& p, Operation& op, const ScanArrays& s, bool reverse, int point, int64_t largest,
                        int most_lift) {
  const int64_t L = op.rows, D = op.width, N = tensor(op.inputs[2]).width;
  const Quantizer* codes = tensor(op.inputs[3]).codes;
  need(codes && !codes->zero && !codes->table, "a scan's C is not codes");
  need(s.a.size == D * N && s.delta_scale.size == D && s.input_channel.size == D && s.y_channel.size == D,
       "a scan's channels do not fit");
  need(s.beta_scale.size == L && s.input_step.size == L && s.lift.size == L && s.y_step.size == L,
       "a scan's steps do not fit");
  // What keeps every intermediate value in its lanes.
  need(s.shift >= 16 && s.shift <= 31, "a scan's shift is out of range");
  int64_t largest_C = 255;
  for (int64_t t = 0; t < L; ++t) {
    need(s.lift.at(t) >= 0 && s.lift.at(t) <= most_lift, "a scan's steps are out of range");
    const float zero = codes->zero_token[t];
    need(zero >= -32000 && zero <= 32000, "a zero point is out of range");
    const int64_t reach = static_cast<int64_t>(std::fabs(zero)) + 255;
    if (reach > largest_C) largest_C = reach;
  }
  need(padded(N, 2) * largest * largest_C < (int64_t{1} << 31), "a scan's sums may leave 32 bits");

  const int64_t lanes = kernels_->lanes;
  p.L = L, p.C = padded(D), p.N = padded(N, 2), p.reverse = reverse, p.shift = s.shift;
  uint16_t* packed = keep<uint16_t>(p.C * p.N);
  for (int64_t c = 0; c < D; ++c)
    for (int64_t n = 0; n < N; ++n) {
      const int32_t value = s.a.at(c * N + n);
      need(value >= 0 && value <= 65535, "a scan's A is out of range");
      packed[c / lanes * lanes * p.N + (n / 2 * lanes + c % lanes) * 2 + n % 2] = static_cast<uint16_t>(value);
    }
  p.a = packed;
  p.delta_scale = keep(s.delta_scale, p.C), p.input_channel = keep(s.input_channel, p.C);
  // The product with a power of two is exact.
  float* unit = keep<float>(p.C);
  for (int64_t c = 0; c < D; ++c) unit[c] = std::ldexp(s.y_channel.at(c), -point);
  p.y_channel = unit;
  p.beta_scale = keep(s.beta_scale, L), p.input_step = keep(s.input_step, L), p.y_step = keep(s.y_step, L);
  p.lift = keep(s.lift, L);
  op.extra_floats = padded(L * p.N + kChannels, 32) + p.N * kChannels + 64;
}

// Descending coefficients: no difference is negative, and the power at most the first of them.
void Engine::need_power(Array<int32_t> power, int64_t at, int most) {
  for (int64_t i = at; i < at + 4; ++i)
    need(power.at(i) >= 0 && power.at(i) <= (i > at ? power.at(i - 1) : most), "a scan's power of two is out of range");
}

void Engine::fused_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                        Array<int32_t> power, int state_low, int state_high, int point) {
  const int64_t L = tensor(u).rows;
  Operation& op = start(Operation::kFusedScan, L, tensor(u).width);
  scan_shape(op, u, delta, B, C, y);
  FusedScan& p = op.fused_scan;
  const int end = 1 << (13 - point);
  need(point >= 6 && point <= 12 && state_low >= -end && state_high < end && state_low <= state_high,
       "a scan's state is out of range");
  scan_steps(p.steps, op, arrays, reverse, point, 32767, 2);
  need(power.size == 4 * L, "a scan's power of two does not fit");
  int16_t* pairs = keep<int16_t>(8 * L);
  for (int64_t t = 0; t < L; ++t) {
    need_power(power, 4 * t, 32767);
    for (int64_t i = 0; i < 8; ++i) pairs[8 * t + i] = static_cast<int16_t>(power.at(4 * t + i / 2));
  }
  p.power = pairs, p.state_low = state_low, p.state_high = state_high, p.point = point;
}

void Engine::fixed_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanNumbers& s,
                        const ScanArrays& arrays, Array<int32_t> abar_power, Array<int16_t> abar_lut,
                        Array<int16_t> bbar_lut, Array<float> drive_channel, Array<int32_t> decay) {
  const int64_t L = tensor(u).rows, D = tensor(u).width;
  Operation& op = start(Operation::kFixedScan, L, D);
  scan_shape(op, u, delta, B, C, y);
  need(drive_channel.size == D && decay.size == L && abar_power.size == 4, "a scan's channels or steps do not fit");
  need(abar_lut.size == 0 || abar_lut.size == 32768, "a scan's table does not fit");
  need(bbar_lut.size == 0 || bbar_lut.size == 65536, "a scan's table does not fit");
  need(s.point >= 1 && s.point <= 10 && s.state_low >= -(2048 >> s.point) && s.state_high < 2048 >> s.point &&
           s.state_low <= s.state_high,
       "a scan's state is out of range");
  need(s.abar_bits >= 1 && s.abar_bits <= 8 && s.abar_fraction >= 0 && s.abar_fraction <= 15 && s.bbar_bits >= 2 &&
           s.bbar_bits <= 8,
       "a scan's bits are out of range");
  FixedScan& p = op.fixed_scan;
  scan_steps(p.steps, op, arrays, reverse, s.point, 2048, 3);
  const int half = s.abar_fraction ? 1 << (s.abar_fraction - 1) : 0, bbar_end = 1 << (s.bbar_bits - 1);
  int64_t largest_abar = 0;
  if (!abar_lut.size) {
    need(half && s.abar_high >= 0 && s.abar_high < 1 << s.abar_bits, "a scan's Abar is out of range");
    largest_abar = int64_t{s.abar_high} << (16 - s.abar_bits);
  }
  if (!bbar_lut.size)
    need(s.bbar_low >= -bbar_end && s.bbar_high < bbar_end && s.bbar_low <= s.bbar_high,
         "a scan's Bbar is out of range");
  for (int64_t i = 0; i < abar_lut.size; ++i)
    largest_abar = std::max<int64_t>(largest_abar, static_cast<uint16_t>(abar_lut.at(i)));
  need_power(abar_power, 0, 65535 - half);
  uint16_t* kept = keep<uint16_t>(L);
  for (int64_t t = 0; t < L; ++t) {
    need(decay.at(t) >= 0 && decay.at(t) <= 65535 && (largest_abar * decay.at(t)) >> 16 <= 32767,
         "a scan's steps are out of range");
    kept[t] = static_cast<uint16_t>(decay.at(t));
  }
  p.decay = kept;
  for (int64_t i = 0; i < 4; ++i) p.abar_power[i] = abar_power.at(i);
  p.abar_fraction = s.abar_fraction, p.abar_high = s.abar_high, p.abar_bits = s.abar_bits;
  p.bbar_low = s.bbar_low, p.bbar_high = s.bbar_high, p.bbar_bits = s.bbar_bits;
  p.state_low = s.state_low, p.state_high = s.state_high, p.point = s.point;
  p.abar_table = scan_table(abar_lut, 0), p.bbar_table = scan_table(bbar_lut, -32768);
  for (int64_t i = 0; i < bbar_lut.size; ++i) need(bbar_lut.at(i) >= -32767, "a scan's table is out of range");
  p.aligned = !abar_lut.size && !bbar_lut.size && arrays.shift == 16 && s.abar_fraction == 16 - s.abar_bits &&
              (abar_power.at(0) + half) >> s.abar_fraction <= s.abar_high;
  p.drive_channel = keep(drive_channel, p.steps.C);
}

// `least`: the value of the first entry.
ScanTable Engine::scan_table(Array<int16_t> lut, int least) {
  if (!lut.size) return {nullptr, 0, nullptr, nullptr};
  std::vector<int16_t> thresholds, values = {lut.at(0)};
  for (int64_t i = 1; i < lut.size; ++i)
    if (lut.at(i) != lut.at(i - 1)) thresholds.push_back(static_cast<int16_t>(i + least)), values.push_back(lut.at(i));
  const int64_t steps = static_cast<int64_t>(thresholds.size());
  const int16_t* copy = keep(lut, lut.size);
  if (steps > kManySteps) return {copy, steps, nullptr, nullptr};
  // What is beyond the last threshold has the last value.
  const bool few = steps <= kFewSteps;
  const size_t entries = few ? kFewSteps + 1 : kManySteps + 1, groups = few ? entries : entries / 4;
  thresholds.resize(entries, 32767), values.resize(entries, lut.at(lut.size - 1));
  int16_t *packed_thresholds = keep<int16_t>(entries), *packed_values = keep<int16_t>(entries);
  for (size_t i = 0; i < entries; ++i) {
    const size_t to = few ? i : i % 4 * groups + i / 4;
    packed_thresholds[to] = thresholds[i], packed_values[to] = values[i];
  }
  return {copy, steps, packed_thresholds, packed_values};
}

Factor Engine::factor(const FactorArrays& arrays) {
  need(arrays.kind >= 0 && arrays.kind <= 2, "no such quantizer");
  const bool table = arrays.kind == Factor::kTable;
  need(!table || (arrays.table.size >= 1 && arrays.table.size <= 256), "a table does not fit");
  need(!table || arrays.thresholds.size == arrays.table.size - 1, "a table does not fit");
  return {static_cast<Factor::Kind>(arrays.kind), arrays.inverse, arrays.low, arrays.high, arrays.step,
          keep(table ? arrays.table : Array<float>{nullptr, 0}, 256),
          keep(table ? arrays.thresholds : Array<float>{nullptr, 0}, 256),
          table ? static_cast<int>(arrays.thresholds.size) : 0};
}

void Engine::float_scan(int u, int delta, int B, int C, int y, bool reverse, Array<float> A,
                        const FactorArrays& abar, const FactorArrays& bbar, Array<float> bbar_channel,
                        Array<float> bbar_inverse, Array<float> step, Array<float> scale, float low, float high,
                        bool read_quantized) {
  const int64_t L = tensor(u).rows, D = tensor(u).width, N = tensor(B).width;
  Operation& op = start(Operation::kFloatScan, L, D);
  scan_shape(op, u, delta, B, C, y);
  need(A.size == D * N && bbar_channel.size == D && bbar_inverse.size == D && (step.size == 0 || step.size == L) &&
           scale.size == (step.size ? D * N : 0),
       "a scan's parameters do not fit");
  float *rows_A = keep<float>(padded(D) * N), *rows_scale = keep<float>(padded(D) * N);
  for (int64_t i = 0; i < padded(D) * N; ++i) rows_scale[i] = 1.0f;
  for (int64_t c = 0; c < D; ++c)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t to = c / kChannels * kChannels * N + n * kChannels + c % kChannels;
      rows_A[to] = A.at(c * N + n);
      if (scale.size) rows_scale[to] = scale.at(c * N + n);
    }
  op.float_scan = {L, padded(D), N, reverse, rows_A, factor(abar), factor(bbar),
                   keep(bbar_channel, padded(D)), keep(bbar_inverse, padded(D)),
                   step.size ? keep(step, L) : nullptr, rows_scale, low, high, read_quantized};
  op.extra_floats = padded(N) * (kChannels + 2) + 64;
}

}  // namespace visq::engine
