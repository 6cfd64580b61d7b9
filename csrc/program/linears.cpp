// Linear layers: weights are packed as the kernels read them.
#include <algorithm>

#include "program/engine.h"

namespace visq::engine {
namespace {

bool fits_nibbles(Array<int8_t> weight) {
  return std::all_of(weight.data, weight.data + weight.size, [](int8_t w) { return -8 <= w && w <= 7; });
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

IntLinear& Engine::start_int_linear(const Check& need, const char* name, int64_t rows, int64_t width, int input,
                                    Array<int8_t> weight, Array<float> scale, Array<float> token, Array<float> bias,
                                    bool wide) {
  const Tensor& x = tensor(need, input);
  const int64_t N = width, K = x.width;
  need.size("its width", N);
  need(x.codec, "tensor ", input, " has no codes");
  need(x.rows == rows, "has ", rows, " rows, but tensor ", input, " has ", x.rows);
  need.count("weight", weight, N * K);
  need.count("scale", scale, N);
  need.count("bias", bias, N);
  need.count("token", token, rows);
  Operation& op = start(need, name, Operation::kIntLinear, rows, width);
  op.inputs[0] = input;
  IntLinear& p = op.int_linear;
  p.K = K, p.N = padded(N), p.wide = wide;
  p.tiled = !wide && kernels_->tiles(rows, K);
  p.nibbles = !wide && !p.tiled && fits_nibbles(weight);
  const int64_t lanes = kernels_->lanes, step = wide ? 2 : p.nibbles ? 4 : kernels_->step, panel = kernels_->panel;
  const int64_t parts = p.nibbles ? 2 : 1;  // steps that share an element of `packed`
  const int64_t each = step * parts, count = padded(K, p.tiled ? 64 : each) / each, blocks = p.N / lanes;
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
          const auto w = [&](int64_t at) -> int32_t { return n < N && at < K ? weight.at(n * K + at) : 0; };
          const int32_t element = p.nibbles ? (w(k) & 15) | (w(k + step) & 15) << 4 : w(k);
          bytes ? static_cast<void>(bytes[to] = static_cast<int8_t>(element))
                : static_cast<void>(shorts[to] = static_cast<int16_t>(element));
          sums[n] += w(k) + (p.nibbles ? w(k + step) : 0);
        }
  }
  p.row_sums = sums;
  p.scale = copy(scale, p.N), p.bias = copy(bias, p.N), p.token = copy(token, rows);
  if (step == 2) op.extra_floats = kernels_->rows * x.stride / 2;
  return p;
}

void Engine::int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                        Array<float> token, Array<int32_t> zero, Array<float> bias) {
  const Check need = next_operation("linear");
  need.count("zero", zero, rows);
  // |byte - zero| <= 2^16 keeps the products, and this their sums, inside 32 bits.
  int64_t largest = 255;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t z = zero.at(i), reach = z < 0 ? 255 - z : z > 255 ? z : 255;
    if (reach > largest) largest = reach;
  }
  const int64_t K = tensor(need, input).width;
  need(K * largest * 128 < (int64_t{1} << 31), "sums of ", K, " products of up to ", largest, " * 128 may leave 32 bits");
  start_int_linear(need, "linear", rows, width, input, weight, scale, token, bias, false).zero = copy(zero, rows);
}

void Engine::wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                         Array<float> token, Array<float> bias, Array<int16_t> values, Array<int16_t> offset,
                         Array<int16_t> factor) {
  const Check need = next_operation("wide linear");
  const int64_t K = tensor(need, input).width;
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
  IntLinear& p = start_int_linear(need, "wide linear", rows, width, input, weight, scale, token, bias, true);
  p.values = values.size ? copy(values, 256) : nullptr;
  p.offset = copy(offset, K), p.factor = copy(factor, K), p.zero = allocate<int32_t>(rows);
}

void Engine::float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias) {
  const Check need = next_operation("float linear");
  const Tensor& x = tensor(need, input);
  need.size("its width", width);
  need(x.rows == rows, "has ", rows, " rows, but tensor ", input, " has ", x.rows);
  need.count("weight", weight, width * x.width);
  need.count("bias", bias, width);
  Operation& op = start(need, "float linear", Operation::kFloatLinear, rows, width);
  op.inputs[0] = input;
  op.float_linear = {x.width, padded(width), pack_floats(weight.data, width, x.width, x.width, 1),
                     copy(bias, padded(width))};
  if (x.codec) op.extra_floats = kernels_->rows * padded(x.width);
}

}  // namespace visq::engine
