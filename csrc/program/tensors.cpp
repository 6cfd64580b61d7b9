// What every part of a program rests on: tensors, their codecs, and the memory of parameters.
#include <algorithm>

#include "isa.h"
#include "program/engine.h"

namespace visq::engine {

Engine::Engine(const std::string& isa, int64_t channels, int64_t height, int64_t width)
    : kernels_(engine_kernels(isa)), isa_(isa), channels_(channels), height_(height), width_(width) {
  const Check need("the engine");
  need(kernels_ != nullptr, "this machine or build lacks the instruction set ", isa);
  need.size("the number of channels", channels);
  need.size("the height of an image", height);
  need.size("the width of an image", width);
}

const Tensor& Engine::tensor(const Check& need, int index) const {
  need(index >= 0 && index < static_cast<int>(tensors_.size()), "tensor ", index, " is none of the ", tensors_.size());
  return tensors_[index];
}

// Keeps a vector of equal elements once: most codecs have scales by channel or by token, not both.
const float* Engine::copy_shared(Array<float> from, int64_t count) {
  const float first = from.at(0);
  if (!std::all_of(from.data, from.data + from.size, [first](float x) { return x == first; })) return copy(from, count);
  const float*& kept = constants_[{first, count}];
  if (!kept) kept = copy(from, count);
  return kept;
}

// In the order of round_to_bytes, which packs two vectors into 16 bits: four numbers of the first vector, four of the
// second, and so on (zero_place in csrc/lanes/generic.h).
const int16_t* Engine::pack_zeros(Array<float> zero) {
  const int64_t lanes = kernels_->lanes, pair = 2 * lanes, quarter = lanes < 4 ? lanes : 4;
  int16_t* packed = allocate<int16_t>(padded(zero.size, 64));
  for (int64_t at = 0; at < pair; ++at) {
    const int64_t vector = at / quarter % 2, element = at / (2 * quarter) * quarter + at % quarter;
    for (int64_t i = 0; i + pair <= zero.size; i += pair)
      packed[i + at] = static_cast<int16_t>(zero.at(i + vector * lanes + element));
  }
  return packed;
}

int Engine::add_codec(int64_t width, int64_t rows, Array<float> inverse, Array<float> step, Array<float> inverse_token,
                      Array<float> step_token, Array<float> zero, Array<float> zero_token, float low, float high,
                      Array<float> table, Array<float> thresholds) {
  const Check need("codec", static_cast<int64_t>(codecs_.size()));
  need.size("its width", width);
  need.size("its number of rows", rows);
  need.count("inverse", inverse, width);
  need.count("step", step, width);
  need.count("inverse_token", inverse_token, rows);
  need.count("step_token", step_token, rows);
  need.count("zero_token", zero_token, rows);
  need(zero.size == 0 || zero.size == width, "zero has ", zero.size, " elements, not 0 or ", width);
  need(low >= 0 && high <= 255 && low <= high, "codes from ", low, " to ", high, " are not bytes");
  need(table.size <= 256, "its table has ", table.size, " values, more than 256");
  need.count("thresholds", thresholds, table.size ? table.size - 1 : 0);
  auto codec = std::make_unique<Codec>();
  codec->width = width, codec->rows = rows;
  codec->inverse = copy_shared(inverse, width), codec->step = copy_shared(step, width);
  codec->inverse_token = copy_shared(inverse_token, rows), codec->step_token = copy_shared(step_token, rows);
  codec->by_channel = codec->by_token = false;
  for (int64_t c = 0; c < width; ++c) codec->by_channel |= inverse.at(c) != 1 || step.at(c) != 1;
  for (int64_t r = 0; r < rows; ++r) codec->by_token |= inverse_token.at(r) != 1 || step_token.at(r) != 1;
  // Kernels add zero points in 16 bits.
  for (const Array<float>& zeros : {zero, zero_token})
    for (int64_t i = 0; i < zeros.size; ++i)
      need(zeros.at(i) >= -16384 && zeros.at(i) <= 16384, "zero point ", i, " is ", zeros.at(i),
           ", not between -16384 and 16384");
  codec->zero = zero.size ? copy(zero, width) : nullptr;
  codec->packed_zero = zero.size ? pack_zeros(zero) : nullptr;
  codec->zero_token = copy_shared(zero_token, rows);
  codec->low = low, codec->high = high;
  if (table.size) {
    // 256 entries, so that any byte of padding finds one.
    codec->table = copy(table, 256), codec->thresholds = copy(thresholds, 256);
    float* positions = allocate<float>(256);
    for (int i = 0; i < 256; ++i) positions[i] = static_cast<float>(i);
    codec->positions = positions, codec->thresholds_count = static_cast<int>(thresholds.size);
  }
  codecs_.push_back(std::move(codec));
  return static_cast<int>(codecs_.size()) - 1;
}

int Engine::add_tensor(int64_t rows, int64_t width, int64_t offset, int codec) {
  const Check need("tensor", static_cast<int64_t>(tensors_.size()));
  need.size("its number of rows", rows);
  need.size("its width", width);
  need(codec >= -1 && codec < static_cast<int>(codecs_.size()), "codec ", codec, " is none of the ", codecs_.size());
  Tensor t = {rows, width, 0, offset, codec < 0 ? nullptr : codecs_[codec].get(), 0};
  t.stride = t.codec ? padded(width, 64) : padded(width);
  if (t.codec)
    need(t.codec->width == width && t.codec->rows == rows, "is [", rows, ", ", width, "], but its codec ", codec,
         " is for [", t.codec->rows, ", ", t.codec->width, "]");
  const int64_t bytes = rows * t.stride * (t.codec ? 1 : 4);
  need(offset >= 0 && offset % 64 == 0 && offset <= kMaxBytes - bytes, "its ", bytes, " bytes at offset ", offset,
       " do not fit an arena of ", kMaxBytes);
  needed_arena_ = std::max(needed_arena_, offset + bytes);
  tensors_.push_back(t);
  return static_cast<int>(tensors_.size()) - 1;
}

void Engine::map(int index, int64_t height) {
  const Check need("tensor", index);
  const Tensor& t = tensor(need, index);
  need(height >= 1 && height <= t.rows && t.rows % height == 0, "has ", t.rows, " rows, which are no map ", height,
       " high");
  tensors_[index].map_height = height;
}

}  // namespace visq::engine
