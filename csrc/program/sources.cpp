// Starting operations; sources that move or add up rows. The other sources: linears.cpp, convolutions.cpp, scans.cpp.
#include "program/engine.h"
#include "program/geometry.h"

namespace visq::engine {

Operation& Engine::start(const Check& need, const char* name, Operation::Kind kind, int64_t rows, int64_t width) {
  need(!finished_, "the program is finished already");
  need.size("its number of rows", rows);
  if (kind != Operation::kRows) need.size("its width", width);
  drafts_.push_back(std::make_unique<Draft>());
  drafts_.back()->name = name;
  Operation& op = drafts_.back()->op;
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
  Check("the program")(!drafts_.empty() && !finished_, "no operation was started, or the program is finished already");
  return drafts_.back()->op;
}

void Engine::patches(int64_t rows, int64_t width, int input, int64_t patch, int64_t stride, int64_t padding) {
  const Check need = next_operation("patches");
  need.size("its patch", patch);
  need.size("its stride", stride);
  const int64_t side = input < 0 ? size_ : square_side(need, tensor(need, input).rows);
  const int64_t channels = input < 0 ? channels_ : tensor(need, input).width;
  const int64_t on_a_side = windows(need, side, patch, stride, padding);
  need(rows == on_a_side * on_a_side && width == channels * patch * patch, "is [", rows, ", ", width, "], but ",
       on_a_side, " x ", on_a_side, " patches of ", channels, " channels are [", on_a_side * on_a_side, ", ",
       channels * patch * patch, "]");
  Operation& op = start(need, "patches", Operation::kPatches, rows, width);
  op.inputs[0] = input;
  op.patch = patch, op.patch_stride = stride, op.padding = padding, op.side = side;
  op.extra_floats = input < 0 ? 0 : padded(channels);
}

void Engine::transpose(int input, int64_t height, int64_t width) {
  const Check need = next_operation("transpose");
  const Tensor& x = tensor(need, input);
  need.size("the map's height", height);
  need.size("the map's width", width);
  need(height * width == x.rows, "a map of ", height, " x ", width, " has not the ", x.rows, " rows of tensor ", input);
  Operation& op = start(need, "transpose", Operation::kTranspose, x.rows, x.width);
  op.inputs[0] = input, op.map_height = height, op.map_width = width;
}

void Engine::mean(int input) {
  const Check need = next_operation("mean");
  const int64_t width = tensor(need, input).width;
  Operation& op = start(need, "mean", Operation::kMean, 1, width);
  op.inputs[0] = input, op.extra_floats = padded(width);
}

void Engine::concat(int64_t rows, int64_t width) {
  start(next_operation("concat"), "concat", Operation::kConcat, rows, width);
}

void Engine::concat_part(int index, int64_t first, int64_t count, Array<float> constant) {
  const Operation& op = current();
  const Check need("concat", static_cast<int64_t>(drafts_.size()) - 1, -1);
  need(op.kind == Operation::kConcat, "is no concatenation, so it takes no part");
  Part part = {index, first, count, nullptr};
  if (index < 0) {
    need(count == 1, "a constant is one row, not ", count);
    need.count("a constant row", constant, op.width);
    part.constant = copy(constant, op.width);
  } else {
    const Tensor& t = tensor(need, index);
    need(t.width == op.width, "tensor ", index, " is ", t.width, " wide, not ", op.width);
    need(count >= 1 && first >= 0 && count <= t.rows && first <= t.rows - count, count, " rows from ", first,
         " on are not in the ", t.rows, " of tensor ", index);
  }
  drafts_.back()->parts.push_back(part);
}

void Engine::rows(int64_t rows) { start(next_operation("rows"), "rows", Operation::kRows, rows, 0); }

}  // namespace visq::engine
