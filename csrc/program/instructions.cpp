// Row instructions, as they are added to the newest operation.
#include <algorithm>
#include <cstring>

#include "program/engine.h"

namespace visq::engine {

Check Engine::next_instruction(const char* name) const {
  if (drafts_.empty()) return Check(name);
  return Check(name, static_cast<int64_t>(drafts_.size()) - 1,
               static_cast<int64_t>(drafts_.back()->instructions.size()));
}

int64_t Engine::width_of(const Check& need, int reg) const {
  need(reg >= 0 && reg < kRegisters && !widths_.empty() && widths_[reg] >= 0, "register ", reg,
       " is read before it is written");
  return widths_[reg];
}

void Engine::need_new(const Check& need, int reg) const {
  need(reg >= 0 && reg < kRegisters, "register ", reg, " is none of the ", kRegisters);
  need(widths_[reg] < 0, "register ", reg, " is written twice");
}

// `room`: floats of `slot` that the instruction writes.
Instruction& Engine::add(const Check& need, Instruction::Op kind, int dst, int src, int64_t slot, int64_t room) {
  Operation& op = current();
  Instruction s = {};
  s.op = kind, s.dst = dst, s.slot = slot, s.in_memory = writes(s.op) && kind != Instruction::kView;
  if (src >= 0) s.width = width_of(need, src), s.a = slices_[src].reg, s.a_offset = slices_[src].offset;
  if (writes(s.op)) need_new(need, dst);
  need(slot >= 0 && slot <= kMaxBytes && room >= 0 && room <= 4 * kMaxSize, "its slot of ", room, " floats at ", slot,
       " is too large");
  op.slot_floats = std::max(op.slot_floats, slot + room);
  drafts_.back()->instructions.push_back(s);
  return drafts_.back()->instructions.back();
}

void Engine::join() {
  Check("the program")(drafts_.size() > 1 && !finished_, "there is no operation that could join another");
  const Operation &op = drafts_.back()->op, &before = drafts_[drafts_.size() - 2]->op;
  const Check need(drafts_.back()->name, static_cast<int64_t>(drafts_.size()) - 1, -1);
  need(op.rows == before.rows, "its ", op.rows, " rows cannot join the ", before.rows, " rows of the operation before");
  need(op.kind != Operation::kAttention, "attention starts a phase, so it joins nothing");
  need(!is_scan(op.kind) || is_scan(before.kind), "a scan joins scans, but the operation before is a ",
       drafts_[drafts_.size() - 2]->name);
  drafts_.back()->joins = true;
}

void Engine::load(int dst, int index, int64_t row, int64_t slot) {
  const Check need = next_instruction("load");
  const Tensor& t = tensor(need, index);
  if (row < 0)
    need(t.rows == current().rows, "tensor ", index, " has ", t.rows, " rows, not ", current().rows);
  else
    need(row < t.rows, "tensor ", index, " has no row ", row, ", only ", t.rows);
  const Instruction::Op op = !t.codec                       ? Instruction::kView
                             : row < 0 && !t.codec->table ? Instruction::kLoad
                                                          : Instruction::kLoadRow;
  Instruction& s = add(need, op, dst, -1, slot, t.codec ? padded(t.width) : 0);
  s.tensor = index, s.row = row < 0 ? -1 : row, s.width = t.width;
  widths_[dst] = t.width;
}

void Engine::slice(int dst, int src, int64_t offset, int64_t width) {
  const Check need = next_instruction("slice");
  current();
  need.size("its width", width);
  const int64_t there = width_of(need, src);
  need(offset >= 0 && width <= there && offset <= there - width, width, " channels from ", offset, " on are not in the ",
       there, " of register ", src);
  need_new(need, dst);
  slices_[dst] = {slices_[src].reg, slices_[src].offset + offset};
  widths_[dst] = width;
}

namespace {

// The elementwise instruction of a name that reads so many registers.
Instruction::Op elementwise(const Check& need, const std::string& name, int operands) {
#define VISQ_NAMED(op, its_name, its_operands) \
  if (name == its_name && operands == its_operands) return Instruction::op;
  VISQ_ELEMENTWISE(VISQ_NAMED)
#undef VISQ_NAMED
  need(false, "there is no such instruction");
  return Instruction::kSilu;
}

}  // namespace

void Engine::unary(const std::string& name, int dst, int src, int64_t slot) {
  const Check need = next_instruction(name.c_str());
  add(need, elementwise(need, name, 1), dst, src, slot, padded(width_of(need, src)));
  widths_[dst] = width_of(need, src);
}

void Engine::binary(const std::string& name, int dst, int a, int b, int64_t slot) {
  const Check need = next_instruction(name.c_str());
  const Instruction::Op op = elementwise(need, name, 2);
  const int64_t width = width_of(need, a);
  need(width == width_of(need, b), "register ", a, " is ", width, " wide, register ", b, " ", width_of(need, b));
  Instruction& s = add(need, op, dst, a, slot, padded(width));
  s.b = slices_[b].reg, s.b_offset = slices_[b].offset;
  widths_[dst] = width;
}

void Engine::append(int dst, int a, int b, int64_t slot) {
  const Check need = next_instruction("append");
  const int64_t first = width_of(need, a), width = first + width_of(need, b);
  need.size("its width", width);
  Instruction& s = add(need, Instruction::kAppend, dst, a, slot, padded(width));
  s.b = slices_[b].reg, s.b_offset = slices_[b].offset, s.width = width, s.first_width = first;
  widths_[dst] = width;
}

void Engine::turn(int dst, int src, int64_t slot) {
  const Check need = next_instruction("turn");
  const int64_t width = width_of(need, src);
  need(width % 2 == 0, width, " channels are not pairs");
  add(need, Instruction::kTurn, dst, src, slot, padded(width));
  widths_[dst] = width;
}

void Engine::with_constant(const std::string& name, int dst, int src, Array<float> constant, int64_t slot) {
  const Check need = next_instruction(name.c_str());
  need(name == "add_constant" || name == "mul_constant", "there is no such instruction");
  const int64_t width = width_of(need, src), rows = constant.size == width ? 1 : current().rows;
  need(constant.size == width * rows, "its constant has ", constant.size, " elements, not ", width, " or ", width, " * ",
       rows);
  Instruction& s = add(need, name == "add_constant" ? Instruction::kAddConstant : Instruction::kMulConstant, dst, src,
                       slot, padded(width));
  float* rows_of_it = allocate<float>(rows * padded(width));
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(rows_of_it + r * padded(width), constant.data + r * width, width * sizeof(float));
  s.constant = rows_of_it, s.constant_stride = rows == 1 ? 0 : padded(width);
  widths_[dst] = width;
}

void Engine::mul_scalar(int dst, int src, float value, int64_t slot) {
  const Check need = next_instruction("mul_scalar");
  add(need, Instruction::kMulScalar, dst, src, slot, padded(width_of(need, src))).value = value;
  widths_[dst] = width_of(need, src);
}

void Engine::rms_norm(int dst, int src, Array<float> weight, float eps, int64_t slot) {
  const Check need = next_instruction("rms_norm");
  const int64_t width = width_of(need, src);
  need.count("weight", weight, width);
  Instruction& s = add(need, Instruction::kRmsNorm, dst, src, slot, padded(width));
  s.constant = copy(weight, width), s.eps = eps, s.value = static_cast<float>(1.0 / static_cast<double>(width));
  widths_[dst] = width;
}

void Engine::layer_norm(int dst, int src, Array<float> weight, Array<float> bias, float eps, int64_t slot) {
  const Check need = next_instruction("layer_norm");
  const int64_t width = width_of(need, src);
  need.count("weight", weight, width);
  need.count("bias", bias, width);
  Instruction& s = add(need, Instruction::kLayerNorm, dst, src, slot, padded(width));
  s.constant = copy(weight, width), s.bias = copy(bias, width), s.eps = eps;
  widths_[dst] = width;
}

void Engine::round(int dst, int src, int index, int64_t slot) {
  const Check need = next_instruction("round");
  need(index >= 0 && index < static_cast<int>(codecs_.size()), "codec ", index, " is none of the ", codecs_.size());
  const Codec* codec = codecs_[index].get();
  const int64_t width = width_of(need, src), rows = current().rows;
  need(codec->width == width && codec->rows == rows, "register ", src, " is [", rows, ", ", width, "], but codec ", index,
       " is for [", codec->rows, ", ", codec->width, "]");
  add(need, codec->table ? Instruction::kRoundTable : Instruction::kRound, dst, src, slot, padded(width)).codec = codec;
  widths_[dst] = width;
}

void Engine::rotate(int dst, int src, Array<float> inverse_divisor, Array<float> matrix, int64_t slot) {
  const Check need = next_instruction("rotate");
  const int64_t width = width_of(need, src);
  int64_t order = 1;
  while (order * order < matrix.size) ++order;
  const int64_t runs = width / order;
  need.count("inverse_divisor", inverse_divisor, width);
  need(matrix.size == order * order && width == runs * order && !(runs & (runs - 1)), "a matrix of ", matrix.size,
       " elements does not rotate ", width, " channels");
  const int64_t row = padded(width), extra = runs == 1 ? row : 2 * (row + kChannels) + runs * padded(order);
  Instruction& s = add(need, Instruction::kRotate, dst, src, slot, row + extra);
  s.constant = copy(inverse_divisor, width);
  // A row times the matrix: output n sums element [k][n] over k.
  FloatLinear* linear = allocate<FloatLinear>(1);
  *linear = {order, padded(order), pack_floats(matrix.data, order, order, 1, order), nullptr};
  s.linear = linear;
  if (runs == 1) current().body_rows = kTileRows;  // so that the matrix is read once a tile
  widths_[dst] = width;
}

void Engine::store(int src, int index) {
  const Check need = next_instruction("store");
  const Tensor& t = tensor(need, index);
  const int64_t rows = current().rows, width = width_of(need, src);
  need(t.rows == rows && t.width == width, "register ", src, " is [", rows, ", ", width, "], but tensor ", index, " [",
       t.rows, ", ", t.width, "]");
  const Instruction::Op op = !t.codec          ? Instruction::kStoreFloats
                             : t.codec->table ? Instruction::kStoreTable
                                              : Instruction::kStore;
  add(need, op, 0, src, 0, 0).tensor = index;
}

}  // namespace visq::engine
