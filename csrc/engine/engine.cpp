// What every part of a program needs: checks, memory, tensors and their quantizers. The rest of Engine: sources.cpp,
// instructions.cpp, phases.cpp, run.cpp.
#include "engine.h"

#include <algorithm>
#include <stdexcept>

namespace visq::engine {

void need(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

void need_size(int64_t n) { need(n >= 1 && n <= kMaxSize, "a dimension is out of range"); }

Engine::Engine(const std::string& isa, int64_t channels, int64_t size)
    : kernels_(kernels_named(isa.c_str())), channels_(channels), size_(size) {
  need(kernels_ != nullptr, "this machine or build lacks the instruction set");
  need_size(channels);
  need_size(size);
}

const Tensor& Engine::tensor(int index) const {
  need(index >= 0 && index < static_cast<int>(tensors_.size()), "no such tensor");
  return tensors_[index];
}

void Engine::check_arena(int64_t offset, int64_t bytes) {
  need(offset >= 0 && offset % 64 == 0 && bytes >= 0 && offset + bytes <= kMaxBytes, "an offset is out of range");
  if (offset + bytes > needed_arena_) needed_arena_ = offset + bytes;
}

// A vector whose elements are equal is kept once: most quantizers have scales of channels or of tokens, not both.
const float* Engine::keep_vector(Array<float> from, int64_t count) {
  const float first = from.at(0);
  if (!std::all_of(from.data, from.data + from.size, [first](float x) { return x == first; })) return keep(from, count);
  const float*& kept = constants_[{first, count}];
  if (!kept) kept = keep(from, count);
  return kept;
}

// In the order of Lanes::round_to_bytes, which packs two vectors into 16 bits by quarters of 16 bytes: four numbers of
// the first vector, four of the second, and so on.
const int16_t* Engine::pack_zeros(Array<float> zero) {
  const int64_t lanes = kernels_->lanes, pair = 2 * lanes, quarter = lanes < 4 ? lanes : 4;
  int16_t* packed = keep<int16_t>(padded(zero.size, 64));
  for (int64_t i = 0; i < zero.size / pair * pair; ++i) {
    const int64_t at = i % pair, vector = at / quarter % 2, element = at / (2 * quarter) * quarter + at % quarter;
    packed[i] = static_cast<int16_t>(zero.at(i - at + vector * lanes + element));
  }
  return packed;
}

int Engine::add_quantizer(int64_t width, int64_t rows, Array<float> inverse, Array<float> step,
                          Array<float> inverse_token, Array<float> step_token, Array<float> zero,
                          Array<float> zero_token, float low, float high, Array<float> table, Array<float> thresholds) {
  need_size(width);
  need_size(rows);
  need(inverse.size == width && step.size == width, "a quantizer's channels do not fit");
  need(inverse_token.size == rows && step_token.size == rows && zero_token.size == rows,
       "a quantizer's rows do not fit");
  need(zero.size == 0 || zero.size == width, "a quantizer's zero points do not fit");
  need(low >= 0 && high <= 255 && low <= high, "codes are not bytes");
  need(table.size <= 256 && thresholds.size == (table.size ? table.size - 1 : 0), "a table does not fit");
  auto q = std::make_unique<Quantizer>();
  q->width = width, q->rows = rows;
  q->inverse = keep_vector(inverse, width), q->step = keep_vector(step, width);
  q->inverse_token = keep_vector(inverse_token, rows), q->step_token = keep_vector(step_token, rows);
  q->by_channel = q->by_token = false;
  for (int64_t c = 0; c < width; ++c) q->by_channel = q->by_channel || inverse.at(c) != 1 || step.at(c) != 1;
  for (int64_t r = 0; r < rows; ++r) q->by_token = q->by_token || inverse_token.at(r) != 1 || step_token.at(r) != 1;
  // Codes are made in 16 bits.
  for (const Array<float>& zeros : {zero, zero_token})
    for (int64_t i = 0; i < zeros.size; ++i)
      need(zeros.at(i) >= -16384 && zeros.at(i) <= 16384, "a zero point is out of range");
  q->zero = zero.size ? keep(zero, width) : nullptr;
  q->packed_zero = zero.size ? pack_zeros(zero) : nullptr;
  q->zero_token = keep_vector(zero_token, rows);
  q->low = low, q->high = high;
  if (table.size) {
    // 256 entries: whatever a byte of padding holds, it picks one of them.
    q->table = keep(table, 256), q->thresholds = keep(thresholds, 256);
    float* positions = keep<float>(256);
    for (int i = 0; i < 256; ++i) positions[i] = static_cast<float>(i);
    q->positions = positions, q->thresholds_count = static_cast<int>(thresholds.size);
  }
  quantizers_.push_back(std::move(q));
  return static_cast<int>(quantizers_.size()) - 1;
}

int Engine::add_tensor(int64_t rows, int64_t width, int64_t offset, int quantizer) {
  need_size(rows);
  need_size(width);
  need(quantizer >= -1 && quantizer < static_cast<int>(quantizers_.size()), "no such quantizer");
  Tensor t = {rows, width, 0, offset, quantizer, quantizer < 0 ? nullptr : quantizers_[quantizer].get()};
  t.stride = t.codes ? padded(width, 64) : padded(width);
  need(!t.codes || (t.codes->width == width && t.codes->rows == rows), "a tensor does not fit its quantizer");
  check_arena(offset, rows * t.stride * (t.codes ? 1 : 4));
  tensors_.push_back(t);
  return static_cast<int>(tensors_.size()) - 1;
}

}  // namespace visq::engine
