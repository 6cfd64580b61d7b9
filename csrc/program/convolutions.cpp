// Depthwise convolutions, over the rows of a sequence and over maps.
#include "program/engine.h"
#include "program/geometry.h"

namespace visq::engine {
namespace {

constexpr int64_t kMaxTaps = 64;  // of a convolution over rows

// Zero points that keep sums in 32 bits: 15 * 15 * (65,536 + 255) * 128 < 2^31.
void need_zeros(const Check& need, Array<int32_t> zero) {
  for (int64_t c = 0; c < zero.size; ++c)
    need(zero.at(c) >= -65536 && zero.at(c) <= 65536, "zero point ", c, " is ", zero.at(c),
         ", not between -65536 and 65536");
}

int64_t taps_of(const Check& need, int64_t weights, int64_t channels) {
  const int64_t taps = weights / channels;
  need(taps >= 1 && taps <= kMaxTaps && weights == taps * channels, "weight has ", weights, " elements, not ", channels,
       " times 1 to ", kMaxTaps);
  return taps;
}

}  // namespace

void Engine::int_conv(int input, Array<int8_t> weight, Array<float> scale, Array<int32_t> zero, Array<float> bias,
                      bool reverse) {
  const Check need = next_operation("convolution");
  const Tensor& x = tensor(need, input);
  const int64_t C = x.width, K = taps_of(need, weight.size, C), stride = padded(C);
  need(x.codec, "tensor ", input, " has no codes");
  need.count("scale", scale, C);
  need.count("zero", zero, C);
  need.count("bias", bias, C);
  need_zeros(need, zero);
  Operation& op = start(need, "convolution", Operation::kIntConv, x.rows, C);
  op.inputs[0] = input;
  int32_t *taps = allocate<int32_t>(K * stride), *correction = allocate<int32_t>((K + 1) * stride);
  for (int64_t c = 0; c < C; ++c) {
    int32_t sum = 0;
    for (int64_t k = K - 1; k >= 0; --k) {
      sum += weight.at(c * K + k);
      // In the low half, for a 16-bit multiply-add with a byte whose high half is zero.
      taps[k * stride + c] = weight.at(c * K + k);
      correction[k * stride + c] = zero.at(c) * sum;
    }
  }
  int8_t* four = K <= 4 && kernels_->step == 4 && kernels_->lanes == 16 ? allocate<int8_t>(4 * padded(C, 64)) : nullptr;
  for (int64_t c = 0; four && c < C; ++c)
    for (int64_t k = 0; k < K; ++k) four[c * 4 + 4 - K + k] = weight.at(c * K + k);
  op.conv1d = {K, reverse, 0, op.rows, copy(bias, C), nullptr, taps, four, correction, copy(scale, C)};
}

void Engine::float_conv(int input, Array<float> weight, Array<float> bias, bool reverse) {
  const Check need = next_operation("float convolution");
  const Tensor& x = tensor(need, input);
  const int64_t C = x.width, K = taps_of(need, weight.size, C), stride = padded(C);
  need.count("bias", bias, C);
  Operation& op = start(need, "float convolution", Operation::kFloatConv, x.rows, C);
  op.inputs[0] = input;
  float* taps = allocate<float>(K * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < K; ++k) taps[k * stride + c] = weight.at(c * K + k);
  op.conv1d = {K, reverse, 0, op.rows, copy(bias, C), taps, nullptr, nullptr, nullptr, nullptr};
  if (x.codec) op.extra_floats = (kernels_->rows + K) * stride;
}

void Engine::reach(int64_t ahead, int64_t length) {
  Operation& op = current();
  const Check need("convolution", static_cast<int64_t>(drafts_.size()) - 1, -1);
  need(op.kind == Operation::kIntConv || op.kind == Operation::kFloatConv, "is no convolution over rows");
  need(ahead >= 0 && ahead < op.conv1d.K, "it reads ", ahead, " rows ahead, not 0 to ", op.conv1d.K - 1);
  need(length >= 1 && op.rows % length == 0, "its ", op.rows, " rows are not sequences of ", length);
  op.conv1d.ahead = ahead, op.conv1d.length = length;
}

Conv2d& Engine::start_conv2d(const Check& need, const char* name, Operation::Kind kind, int input, int64_t kernel,
                             int64_t padding) {
  const Tensor& x = tensor(need, input);
  need(kernel >= 1 && kernel <= kMaxKernel, "its kernel is ", kernel, ", not between 1 and ", kMaxKernel);
  const MapSize map = map_of(need, x);
  const int64_t down = windows_along(need, map.height, kernel, 1, padding);
  const int64_t across = windows_along(need, map.width, kernel, 1, padding);
  Operation& op = start(need, name, kind, down * across, x.width);
  op.inputs[0] = input;
  op.conv2d = {kernel, padding, map.height, map.width, across, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  return op.conv2d;
}

void Engine::int_conv2d(int input, int64_t kernel, int64_t padding, Array<int8_t> weight, Array<float> scale,
                        Array<int32_t> zero, Array<float> bias) {
  const Check need = next_operation("convolution 2d");
  const Tensor& x = tensor(need, input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = start_conv2d(need, "convolution 2d", Operation::kIntConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need(x.codec, "tensor ", input, " has no codes");
  need.count("weight", weight, taps * C);
  need.count("scale", scale, C);
  need.count("zero", zero, C);
  need.count("bias", bias, C);
  need_zeros(need, zero);
  // In the low half, for a 16-bit multiply-add with a byte whose high half is zero.
  int32_t *packed = allocate<int32_t>(taps * stride), *sums = allocate<int32_t>(stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) {
      packed[k * stride + c] = weight.at(c * taps + k);
      sums[c] += weight.at(c * taps + k);
    }
  p.taps = packed, p.tap_sums = sums;
  p.zero = copy(zero, C), p.scale = copy(scale, C), p.bias = copy(bias, C);
}

void Engine::float_conv2d(int input, int64_t kernel, int64_t padding, Array<float> weight, Array<float> bias) {
  const Check need = next_operation("float convolution 2d");
  const Tensor& x = tensor(need, input);
  const int64_t C = x.width, stride = padded(C);
  Conv2d& p = start_conv2d(need, "float convolution 2d", Operation::kFloatConv2d, input, kernel, padding);
  const int64_t taps = kernel * kernel;
  need.count("weight", weight, taps * C);
  need.count("bias", bias, C);
  float* packed = allocate<float>(taps * stride);
  for (int64_t c = 0; c < C; ++c)
    for (int64_t k = 0; k < taps; ++k) packed[k * stride + c] = weight.at(c * taps + k);
  p.weight = packed, p.bias = copy(bias, C);
  current().extra_floats = stride;
}

}  // namespace visq::engine
