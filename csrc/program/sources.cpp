// Starting operations; sources that move or add up rows. The other sources: linears.cpp, convolutions.cpp, scans.cpp.
#include "program/engine.h"
#include "program/geometry.h"

namespace visq::engine {

Operation& Engine::start(const Check& need, const char* name, Operation::Kind kind, int64_t rows, int64_t width) {
  need(!finished_, "the program is finished already");
  need.size("its number of rows", rows);
  if (kind != Operation::kRows) need.size("its width", width);
  const bool linear = kind == Operation::kIntLinear || kind == Operation::kFloatLinear;
  need(windows_input_ < 0 || linear, "follows windows, which belong to a linear layer");
  drafts_.push_back(std::make_unique<Draft>());
  drafts_.back()->name = name;
  Operation& op = drafts_.back()->op;
  op = Operation{};
  op.kind = kind, op.rows = rows, op.width = width, op.body_rows = 1;
  op.windows = windows_;
  windows_ = {}, windows_input_ = -1;
  widths_.assign(kRegisters, -1);
  slices_.clear();
  for (int reg = 0; reg < kRegisters; ++reg) slices_.push_back({reg, 0});
  if (kind != Operation::kRows) widths_[0] = width;
  op.tile_floats = in_blocks(kind) || kind == Operation::kRows ? 0 : kernels_->rows * padded(width);
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
  const MapSize map = input < 0 ? MapSize{height_, width_} : map_of(need, tensor(need, input));
  const int64_t channels = input < 0 ? channels_ : tensor(need, input).width;
  const int64_t down = windows_along(need, map.height, patch, stride, padding);
  const int64_t across = windows_along(need, map.width, patch, stride, padding);
  need(rows == down * across && width == channels * patch * patch, "is [", rows, ", ", width, "], but ", down, " x ",
       across, " patches of ", channels, " channels are [", down * across, ", ", channels * patch * patch, "]");
  Operation& op = start(need, "patches", Operation::kPatches, rows, width);
  op.inputs[0] = input;
  op.windows = {map.height, map.width, across, patch, patch, stride, stride, padding, padding, 0};
  op.extra_floats = input < 0 ? 0 : padded(channels);
}

void Engine::windows(int input, int64_t kernel_height, int64_t kernel_width, int64_t stride_height,
                     int64_t stride_width, int64_t padding_height, int64_t padding_width, int64_t outside) {
  const Check need = next_operation("windows");
  need(!finished_ && windows_input_ < 0, "follow windows, or the end of the program");
  const Tensor& x = tensor(need, input);
  const MapSize map = map_of(need, x);
  for (int64_t size : {kernel_height, kernel_width, stride_height, stride_width}) need.size("a kernel or stride", size);
  need(outside >= 0 && outside <= 255, "the code outside is ", outside, ", no byte");
  windows_along(need, map.height, kernel_height, stride_height, padding_height);
  const int64_t across = windows_along(need, map.width, kernel_width, stride_width, padding_width);
  need.size("elements of a window", kernel_height * kernel_width);
  need.size("elements of a window", kernel_height * kernel_width * x.width);
  windows_ = {map.height, map.width, across, kernel_height, kernel_width, stride_height, stride_width,
              padding_height, padding_width, static_cast<uint8_t>(outside)};
  windows_input_ = input;
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

void Engine::pixel_shuffle(int input, int64_t scale) {
  const Check need = next_operation("shuffle");
  const Tensor& x = tensor(need, input);
  const MapSize map = map_of(need, x);
  need(scale >= 1 && scale <= 64, "its scale is ", scale, ", not between 1 and 64");
  need(x.width % (scale * scale) == 0, "tensor ", input, " has ", x.width, " channels, which are no ", scale, " x ", scale,
       " times others");
  Operation& op = start(need, "shuffle", Operation::kShuffle, x.rows * scale * scale, x.width / (scale * scale));
  op.inputs[0] = input, op.map_height = map.height, op.map_width = map.width, op.scale = scale;
  op.extra_floats = padded(x.width);
}

void Engine::start_resampling(const char* name, Operation::Kind kind, int input, int64_t height, int64_t width) {
  const Check need = next_operation(name);
  need.size("the result's height", height);
  need.size("the result's width", width);
  const Tensor& x = tensor(need, input);
  const MapSize map = map_of(need, x);
  Operation& op = start(need, name, kind, height * width, x.width);
  op.inputs[0] = input, op.map_height = map.height, op.map_width = map.width;
  op.out_height = height, op.out_width = width;
  op.extra_floats = 4 * padded(x.width);
}

void Engine::bilinear(int input, int64_t height, int64_t width) {
  start_resampling("bilinear", Operation::kBilinear, input, height, width);
}

void Engine::average_pool(int input, int64_t height, int64_t width) {
  start_resampling("average pool", Operation::kAveragePool, input, height, width);
}

void Engine::start_windows(const char* name, Operation::Kind kind, int input, int64_t side, int64_t window) {
  const Check need = next_operation(name);
  need.size("the map's side", side);
  need.size("the window's side", window);
  const int64_t across = (side + window - 1) / window, tokens = across * window * across * window;
  const bool enters = kind == Operation::kEnterWindows;
  const Tensor& x = tensor(need, input);
  const int64_t wanted = enters ? side * side : tokens;
  need(x.rows == wanted, "tensor ", input, " has ", x.rows, " rows, not ", wanted);
  Operation& op = start(need, name, kind, enters ? tokens : side * side, x.width);
  op.inputs[0] = input, op.side = side, op.window = window;
}

void Engine::enter_windows(int input, int64_t side, int64_t window) {
  start_windows("enter windows", Operation::kEnterWindows, input, side, window);
}

void Engine::leave_windows(int input, int64_t side, int64_t window) {
  start_windows("leave windows", Operation::kLeaveWindows, input, side, window);
}

void Engine::sample(int input, int64_t height, int64_t width, int64_t row, int64_t column, bool by_columns) {
  const Check need = next_operation("sample");
  const Tensor& x = tensor(need, input);
  need.size("the map's height", height);
  need.size("the map's width", width);
  need(height * width == x.rows, "a map of ", height, " x ", width, " has not the ", x.rows, " rows of tensor ", input);
  need((row == 0 || row == 1) && (column == 0 || column == 1), "a sample starts at (", row, ", ", column, ")");
  Operation& op = start(need, "sample", Operation::kSample, half(height) * half(width), x.width);
  op.inputs[0] = input, op.map_height = height, op.map_width = width;
  op.first_row = row, op.first_column = column, op.by_columns = by_columns;
}

void Engine::merge_samples(int a, int b, int c, int d, int64_t height, int64_t width) {
  const Check need = next_operation("merge samples");
  need.size("the map's height", height);
  need.size("the map's width", width);
  const int64_t rows = half(height) * half(width), channels = tensor(need, a).width;
  for (int input : {a, b, c, d}) {
    const Tensor& x = tensor(need, input);
    need(x.rows == rows && x.width == channels, "tensor ", input, " is [", x.rows, ", ", x.width,
         "], no sample [", rows, ", ", channels, "] of the map");
  }
  Operation& op = start(need, "merge samples", Operation::kMergeSamples, height * width, channels);
  op.inputs[0] = a, op.inputs[1] = b, op.inputs[2] = c, op.inputs[3] = d;
  op.map_height = height, op.map_width = width;
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
