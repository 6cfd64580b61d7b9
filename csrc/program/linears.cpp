// Linear layers: weights are packed as the kernels read them.
#include <algorithm>
#include <cstring>
#include <vector>

#include "program/engine.h"

namespace visq::engine {
namespace {

// [N, K] of panels.
std::vector<int8_t> unpacked(const Panels& weight, int64_t N, int64_t K, int64_t steps) {
  std::vector<int8_t> plain(static_cast<size_t>(N * K));
  const int8_t* at = weight.data;
  for (int64_t first = 0; first < padded(N); first += kPanelOutputs) {
    const int64_t outputs = std::min(kPanelOutputs, padded(N) - first);
    for (int64_t s = 0; s < steps; ++s, at += outputs * 4)
      for (int64_t n = 0; n < outputs && first + n < N; ++n)
        for (int64_t i = 0; i < 4; ++i) {
          int8_t* to = &plain[static_cast<size_t>((first + n) * K)];
          const int byte = at[n * 4 + i];
          const int64_t k = s * (weight.nibbles ? 8 : 4) + i;
          // Sign extension of the low half, and the high half.
          if (k < K) to[k] = static_cast<int8_t>(weight.nibbles ? ((byte & 15) ^ 8) - 8 : byte);
          if (weight.nibbles && k + 4 < K) to[k + 4] = static_cast<int8_t>(byte >> 4);
        }
  }
  return plain;
}

// The weights of a step, 128 or 8 too large so that none is negative, as two sums of 16 bits.
template <bool kNibbles>
uint32_t two_sums(uint32_t bytes) {
  constexpr uint32_t kEven = 0x00ff00ff, kLow = 0x0f0f0f0f;
  bytes ^= kNibbles ? 0x88888888 : 0x80808080;
  if (kNibbles) bytes = (bytes & kLow) + (bytes >> 4 & kLow);
  return (bytes & kEven) + (bytes >> 8 & kEven);
}

// Adds up the weights of every output, of panels as they lie. This is most of what opening a file takes.
template <bool kNibbles>
void add_up(const int8_t* at, int64_t N, int64_t steps, int32_t* sums) {
  constexpr int64_t kMostSteps = 128;  // whose sums fit 16 bits
  constexpr int32_t kExcess = kNibbles ? 8 * 8 : 4 * 128;
  for (int64_t first = 0; first < N; first += kPanelOutputs) {
    const int64_t outputs = std::min(kPanelOutputs, N - first);
    for (int64_t s = 0; s < steps; s += kMostSteps) {
      const int64_t count = std::min(kMostSteps, steps - s);
      uint32_t found[kPanelOutputs] = {};
      for (int64_t i = 0; i < count; ++i, at += outputs * 4)
        for (int64_t n = 0; n < outputs; ++n) {
          uint32_t bytes;
          std::memcpy(&bytes, at + n * 4, 4);
          found[n] += two_sums<kNibbles>(bytes);
        }
      for (int64_t n = 0; n < outputs; ++n)
        sums[first + n] +=
            static_cast<int32_t>((found[n] & 0xffff) + (found[n] >> 16)) - static_cast<int32_t>(count) * kExcess;
    }
  }
}

}  // namespace

// [panel][k][block][lane], zero where N is padded; weight(n, k) = weight[n * stride_n + k * stride_k].
const float* Engine::pack_floats(const float* weight, int64_t N, int64_t K, int64_t stride_n, int64_t stride_k) {
  const int64_t lanes = kernels_->lanes, blocks = padded(N) / lanes, panel = kernels_->panel;
  float* packed = allocate<float>(padded(N) * K);
  float* to = packed;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t width = blocks - b < panel ? blocks - b : panel;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = b * lanes; n < (b + width) * lanes; ++n)
        *to++ = n < N ? weight[n * stride_n + k * stride_k] : 0.0f;
  }
  return packed;
}

// Returns the elements of a row that a linear layer reads: of its input, or of the windows that were just described.
int64_t Engine::linear_input(const Check& need, int64_t rows, int input) const {
  const Tensor& x = tensor(need, input);
  const Windows& w = windows_;
  if (windows_input_ < 0) {
    need(x.rows == rows, "has ", rows, " rows, but tensor ", input, " has ", x.rows);
    return x.width;
  }
  need(windows_input_ == input, "reads tensor ", input, ", but its windows are those of tensor ", windows_input_);
  const int64_t down = (w.height + 2 * w.padding_height - w.kernel_height) / w.stride_height + 1;
  need(rows == down * w.out_width, "has ", rows, " rows, but ", down, " x ", w.out_width, " windows");
  return x.width * w.kernel_height * w.kernel_width;
}

IntLinear& Engine::start_int_linear(const Check& need, const char* name, int64_t rows, int64_t width, int input,
                                    Array<float> scale, Array<float> token, Array<float> bias) {
  const Tensor& x = tensor(need, input);
  need.size("its width", width);
  need(x.codec, "tensor ", input, " has no codes");
  const int64_t K = linear_input(need, rows, input);
  need.count("scale", scale, width);
  need.count("bias", bias, width);
  need.count("token", token, rows);
  Operation& op = start(need, name, Operation::kIntLinear, rows, width);
  op.inputs[0] = input;
  IntLinear& p = op.int_linear;
  p.K = K, p.N = padded(width);
  if (op.windows.height) op.extra_floats = kernels_->rows * padded(K, 64) / 4 + 16;
  p.scale = copy(scale, p.N), p.bias = copy(bias, p.N), p.token = copy(token, rows);
  return p;
}

// Packs weights as this level's kernels read them, and adds them up by output.
void Engine::pack(IntLinear& p, int64_t width, Array<int8_t> weight) {
  const int64_t lanes = kernels_->lanes, step = p.wide ? 2 : p.nibbles ? 4 : kernels_->step, panel = kernels_->panel;
  const int64_t parts = p.nibbles ? 2 : 1;  // steps that share an element of `packed`
  const int64_t each = step * parts, count = padded(p.K, p.tiled ? 64 : each) / each, blocks = p.N / lanes;
  int8_t* bytes = step == 4 ? allocate<int8_t>(p.N * count * step) : nullptr;
  int16_t* shorts = step == 4 ? nullptr : allocate<int16_t>(p.N * count * step);
  p.packed = bytes ? static_cast<const void*>(bytes) : shorts;
  int32_t* sums = allocate<int32_t>(p.N);
  int64_t to = 0;
  for (int64_t b = 0; b < blocks; b += panel) {
    const int64_t in_panel = blocks - b < panel ? blocks - b : panel;
    for (int64_t s = 0; s < count; ++s)
      for (int64_t n = b * lanes; n < (b + in_panel) * lanes; ++n)
        for (int64_t k = s * each; k < s * each + step; ++k, ++to) {
          const auto w = [&](int64_t at) -> int32_t { return n < width && at < p.K ? weight.at(n * p.K + at) : 0; };
          const int32_t element = p.nibbles ? (w(k) & 15) | (w(k + step) & 15) << 4 : w(k);
          bytes ? static_cast<void>(bytes[to] = static_cast<int8_t>(element))
                : static_cast<void>(shorts[to] = static_cast<int16_t>(element));
          sums[n] += w(k) + (p.nibbles ? w(k + step) : 0);
        }
  }
  p.row_sums = sums;
}

// Whether this level's kernels read a file's panels as they are.
bool Engine::in_place(const IntLinear& p, const Panels& weight) const {
  const bool same_steps = p.nibbles || (kernels_->step == 4 && !weight.nibbles && (!p.tiled || p.K % 64 == 0));
  return owner_ && same_steps && kernels_->lanes * kernels_->panel == kPanelOutputs;
}

void Engine::int_linear(int64_t rows, int64_t width, int input, Panels weight, Array<float> scale, Array<float> token,
                        Array<int32_t> zero, Array<float> bias) {
  const Check need = next_operation("linear");
  need.count("zero", zero, rows);
  // |byte - zero| <= 2^16 keeps the products, and this their sums, inside 32 bits.
  int64_t largest = 255;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t z = zero.at(i), reach = z < 0 ? 255 - z : z > 255 ? z : 255;
    if (reach > largest) largest = reach;
  }
  const int64_t K = linear_input(need, rows, input);
  need(K * largest * 128 < (int64_t{1} << 31), "sums of ", K, " products of up to ", largest, " * 128 may leave 32 bits");
  need.size("its width", width);
  const int64_t N = padded(width), each = weight.nibbles ? 8 : 4, steps = padded(K, each) / each;
  need(weight.bytes == N * steps * 4, "weight has ", weight.bytes, " bytes, not ", N * steps * 4);
  IntLinear& p = start_int_linear(need, "linear", rows, width, input, scale, token, bias);
  p.zero = copy(zero, rows);
  p.tiled = kernels_->tiles(rows, K), p.nibbles = !p.tiled && weight.nibbles;
  if (in_place(p, weight)) {
    int32_t* sums = allocate<int32_t>(N);
    weight.nibbles ? add_up<true>(weight.data, N, steps, sums) : add_up<false>(weight.data, N, steps, sums);
    p.packed = weight.data, p.row_sums = sums;
    parameter_bytes_ += padded(weight.bytes, 64);
  } else {
    const std::vector<int8_t> plain = unpacked(weight, width, K, steps);
    pack(p, width, {plain.data(), width * K});
  }
  if (!p.nibbles && kernels_->step == 2) drafts_.back()->op.extra_floats += kernels_->rows * padded(K, 64) / 2;
}

void Engine::wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                         Array<float> token, Array<float> bias, Array<int16_t> values, Array<int16_t> offset,
                         Array<int16_t> factor) {
  const Check need = next_operation("wide linear");
  const int64_t K = linear_input(need, rows, input);
  need(values.size == 0 || values.size == 256, "values has ", values.size, " elements, not 0 or 256");
  need.count("offset", offset, K);
  need.count("factor", factor, K);
  int64_t least = values.size ? values.at(0) : 0, most = values.size ? values.at(0) : 255, sum = 0;
  for (int64_t i = 0; i < values.size; ++i) {
    if (values.at(i) < least) least = values.at(i);
    if (values.at(i) > most) most = values.at(i);
  }
  for (int64_t k = 0; k < K; ++k) {
    const int64_t low = (least - offset.at(k)) * factor.at(k), high = (most - offset.at(k)) * factor.at(k);
    need(factor.at(k) >= 0 && low >= -32768 && high <= 32767, "values of channel ", k, " go from ", low, " to ", high,
         " with a factor of ", factor.at(k), ", which leaves 16 bits");
    sum += 128 * (-low > high ? -low : high);
  }
  need(sum < (int64_t{1} << 31), "sums of up to ", sum, " may leave 32 bits");
  need.count("weight", weight, width * K);
  IntLinear& p = start_int_linear(need, "wide linear", rows, width, input, scale, token, bias);
  p.wide = true;
  pack(p, width, weight);
  drafts_.back()->op.extra_floats += kernels_->rows * padded(K, 64) / 2;
  p.values = values.size ? copy(values, 256) : nullptr;
  p.offset = copy(offset, K), p.factor = copy(factor, K), p.zero = allocate<int32_t>(rows);
}

void Engine::float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias) {
  const Check need = next_operation("float linear");
  const Tensor& x = tensor(need, input);
  need.size("its width", width);
  const int64_t K = linear_input(need, rows, input);
  need.count("weight", weight, width * K);
  need.count("bias", bias, width);
  Operation& op = start(need, "float linear", Operation::kFloatLinear, rows, width);
  op.inputs[0] = input;
  op.float_linear = {K, padded(width), pack_floats(weight.data, width, K, K, 1), copy(bias, padded(width))};
  if (x.codec || op.windows.height) op.extra_floats = kernels_->rows * padded(K);
  if (op.windows.height) op.extra_floats += padded(x.width);
}

}  // namespace visq::engine
