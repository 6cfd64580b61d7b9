// Row instructions as they are added to the operation at hand.
#include <cstring>

#include "engine.h"

namespace visq::engine {

int64_t Engine::width_of(int reg) const {
  need(reg >= 0 && reg < kRegisters && widths_[reg] >= 0, "a register is read before it is written");
  return widths_[reg];
}

// `room`: floats of `slot` that the instruction writes.
Step& Engine::step(Step::Op kind, int dst, int src, int64_t slot, int64_t room) {
  Operation& op = current();
  Step s = {};
  s.op = kind, s.dst = dst, s.slot = slot, s.live = writes(s.op) && kind != Step::kView;
  if (src >= 0) s.width = width_of(src), s.a = slices_[src].reg, s.a_offset = slices_[src].offset;
  if (writes(s.op)) need_new(dst);
  need(slot >= 0 && slot <= kMaxBytes && room >= 0 && room <= 4 * kMaxSize, "a slot is out of range");
  if (slot + room > op.slot_floats) op.slot_floats = slot + room;
  building_.back()->steps.push_back(s);
  return building_.back()->steps.back();
}

void Engine::need_new(int reg) const {
  need(reg >= 0 && reg < kRegisters && widths_[reg] < 0, "a register is written twice");
}

void Engine::join() {
  need(building_.size() > 1 && !finished_, "no operation to join");
  const Operation &op = building_.back()->op, &before = building_[building_.size() - 2]->op;
  need(op.rows == before.rows && (!is_scan(op.kind) || is_scan(before.kind)),
       "an operation joins those of as many rows, and a scan joins scans");
  building_.back()->joins = true;
}

void Engine::load(int dst, int index, int64_t row, int64_t slot) {
  const Tensor& t = tensor(index);
  need(row < 0 ? t.rows == current().rows : row < t.rows, "no such row");
  const Step::Op op = !t.codes ? Step::kView : row < 0 && !t.codes->table ? Step::kLoad : Step::kLoadRow;
  Step& s = step(op, dst, -1, slot, t.codes ? padded(t.width) : 0);
  s.tensor = index, s.row = row < 0 ? -1 : row, s.width = t.width;
  widths_[dst] = t.width;
}

void Engine::slice(int dst, int src, int64_t offset, int64_t width) {
  current();
  need_size(width);
  need(offset >= 0 && offset + width <= width_of(src), "a slice beyond its register");
  need_new(dst);
  slices_[dst] = {slices_[src].reg, slices_[src].offset + offset};
  widths_[dst] = width;
}

void Engine::unary(const std::string& name, int dst, int src, int64_t slot) {
  static const std::map<std::string, Step::Op> ops = {
      {"silu", Step::kSilu}, {"softplus", Step::kSoftplus}, {"gelu", Step::kGelu}, {"neg", Step::kNeg}};
  need(ops.count(name) == 1, "no such instruction");
  step(ops.at(name), dst, src, slot, padded(width_of(src)));
  widths_[dst] = width_of(src);
}

void Engine::binary(const std::string& name, int dst, int a, int b, int64_t slot) {
  need(name == "add" || name == "mul", "no such instruction");
  need(width_of(a) == width_of(b), "registers of different widths");
  Step& s = step(name == "add" ? Step::kAdd : Step::kMul, dst, a, slot, padded(width_of(a)));
  s.b = slices_[b].reg, s.b_offset = slices_[b].offset;
  widths_[dst] = width_of(a);
}

void Engine::with_constant(const std::string& name, int dst, int src, Array<float> constant, int64_t slot) {
  need(name == "add_constant" || name == "mul_constant", "no such instruction");
  const int64_t width = width_of(src), rows = constant.size == width ? 1 : current().rows;
  need(constant.size == width * rows, "a constant does not fit");
  Step& s = step(name == "add_constant" ? Step::kAddConstant : Step::kMulConstant, dst, src, slot, padded(width));
  float* copy = keep<float>(rows * padded(width));
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(copy + r * padded(width), constant.data + r * width, width * sizeof(float));
  s.constant = copy, s.constant_stride = rows == 1 ? 0 : padded(width);
  widths_[dst] = width;
}

void Engine::mul_scalar(int dst, int src, float value, int64_t slot) {
  step(Step::kMulScalar, dst, src, slot, padded(width_of(src))).value = value;
  widths_[dst] = width_of(src);
}

void Engine::rms_norm(int dst, int src, Array<float> weight, float eps, int64_t slot) {
  const int64_t width = width_of(src);
  need(weight.size == width, "a norm's weight does not fit");
  Step& s = step(Step::kRmsNorm, dst, src, slot, padded(width));
  s.constant = keep(weight, width), s.eps = eps, s.value = static_cast<float>(1.0 / static_cast<double>(width));
  widths_[dst] = width;
}

void Engine::layer_norm(int dst, int src, Array<float> weight, Array<float> bias, float eps, int64_t slot) {
  const int64_t width = width_of(src);
  need(weight.size == width && bias.size == width, "a norm's weight does not fit");
  Step& s = step(Step::kLayerNorm, dst, src, slot, padded(width));
  s.constant = keep(weight, width), s.bias = keep(bias, width), s.eps = eps;
  widths_[dst] = width;
}

void Engine::round(int dst, int src, int quantizer, int64_t slot) {
  need(quantizer >= 0 && quantizer < static_cast<int>(quantizers_.size()), "no such quantizer");
  const Quantizer* codes = quantizers_[quantizer].get();
  need(codes->width == width_of(src) && codes->rows == current().rows, "a register does not fit its quantizer");
  step(codes->table ? Step::kRoundTable : Step::kRound, dst, src, slot, padded(width_of(src))).codes = codes;
  widths_[dst] = width_of(src);
}

void Engine::rotate(int dst, int src, Array<float> inverse_divisor, Array<float> matrix, int64_t slot) {
  const int64_t width = width_of(src);
  int64_t order = 1;
  while (order * order < matrix.size) ++order;
  const int64_t runs = width / order;
  need(inverse_divisor.size == width && matrix.size == order * order && width == runs * order && !(runs & (runs - 1)),
       "a rotation does not fit");
  const int64_t row = padded(width), extra = runs == 1 ? row : 2 * (row + kChannels) + runs * padded(order);
  Step& s = step(Step::kRotate, dst, src, slot, row + extra);
  s.constant = keep(inverse_divisor, width);
  // Row by matrix: output n sums over k the element [k][n].
  FloatLinear* linear = keep<FloatLinear>(1);
  *linear = {order, padded(order), pack_floats(matrix.data, order, order, 1, order), nullptr};
  s.linear = linear;
  if (runs == 1) current().body_rows = kTileRows;  // the matrix is read once for a tile
  widths_[dst] = width;
}

void Engine::store(int src, int index) {
  const Tensor& t = tensor(index);
  need(t.rows == current().rows && t.width == width_of(src), "a stored row has another shape");
  const Step::Op op = !t.codes ? Step::kStoreFloats : t.codes->table ? Step::kStoreTable : Step::kStore;
  step(op, 0, src, 0, 0).tensor = index;
}

}  // namespace visq::engine
