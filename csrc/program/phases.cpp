// Groups work once, when a program is complete: a body's instructions become chains, operations become phases, and phases
// become tasks.
#include <algorithm>

#include "program/engine.h"
#include "run/memory.h"

namespace visq::engine {
namespace {

constexpr int64_t kNearFloats = 4096;            // of a body's registers, which then stay in the first cache
constexpr int64_t kLineBlocks = 64 / kChannels;  // blocks of a scan that fill a cache line of codes
constexpr double kTaskNanoseconds = 3000;        // a task takes about as long: not too many, nor too long to wait for

// In the order of Instruction::Op.
const char* const kOpNames[] = {
    "view", "load", "load_row",
#define VISQ_NAME(op, name, operands) name,
    VISQ_ELEMENTWISE(VISQ_NAME)
#undef VISQ_NAME
    "add_constant", "mul_constant", "mul_scalar", "rms_norm", "layer_norm", "append", "turn", "round", "round_table", "rotate", "store",
    "store_floats", "store_table", "store_rounded"};

// About what a row costs.
double row_nanoseconds(const Operation& op) {
  double width = static_cast<double>(op.width), products = 0;
  if (op.kind == Operation::kIntLinear) products = width * static_cast<double>(op.int_linear.K) / 200;
  if (op.kind == Operation::kIntConv2d || op.kind == Operation::kFloatConv2d)
    products = width * static_cast<double>(op.conv2d.K * op.conv2d.K) / 16;
  if (op.kind == Operation::kFloatLinear) products = width * static_cast<double>(op.float_linear.K) / 50;
  return products + (width + 16) * (1 + static_cast<double>(op.instruction_count)) / 16;
}

// Whether the instructions from `at` on are those of a chain.
bool fits(const std::vector<Instruction>& instructions, size_t at, const ChainShape& chain,
          const std::vector<Tensor>& tensors) {
  if (at + static_cast<size_t>(chain.length) > instructions.size()) return false;
  const Instruction* links = &instructions[at];
  const auto comes_from = [&](int link, int reg, int64_t offset) {
    if (link >= 0) return links[link].dst == reg && offset == 0 && links[link].width == links->width;
    return std::none_of(links, links + chain.length,
                        [reg](const Instruction& s) { return writes(s.op) && s.dst == reg; });
  };
  for (int64_t i = 0; i < chain.length; ++i) {
    const Instruction& s = links[i];
    const LinkShape& shape = chain.links[i];
    if (s.width != links->width) return false;
    if (shape.op == Instruction::kStoreRounded) {
      const Instruction& round = links[shape.a];
      if (s.op != Instruction::kStore || tensors[s.tensor].codec != round.codec || s.a != round.a ||
          s.a_offset != round.a_offset)
        return false;
      continue;
    }
    if (s.op != shape.op) return false;
    if (reads(s.op) && !comes_from(shape.a, s.a, s.a_offset)) return false;
    if (is_binary(s.op) && !comes_from(shape.b, s.b, s.b_offset)) return false;
  }
  return true;
}

// Whether an instruction outside of [first, end) reads a register.
bool read_outside(const std::vector<Instruction>& instructions, size_t first, size_t end, int reg) {
  for (size_t i = 0; i < instructions.size(); ++i) {
    const Instruction& s = instructions[i];
    if (i >= first && i < end) continue;
    if ((reads(s.op) && s.a == reg) || (is_binary(s.op) && s.b == reg)) return true;
  }
  return false;
}

}  // namespace

// Cuts a body into segments: the first chain of the list that fits, again and again.
void Engine::chain_instructions(std::vector<Instruction>& instructions, std::vector<Segment>& segments) const {
  // A view of floats computes nothing. In front of all others it does not break a chain.
  std::stable_partition(instructions.begin(), instructions.end(),
                        [](const Instruction& s) { return s.op == Instruction::kView; });
  for (size_t at = 0; at < instructions.size();) {
    const ChainShape *chain = kernels_->chains, *end = chain + kernels_->chain_count;
    while (chain != end && !fits(instructions, at, *chain, tensors_)) ++chain;
    const size_t count = chain == end ? 1 : static_cast<size_t>(chain->length);
    segments.push_back({&instructions[at], static_cast<int64_t>(count), chain == end ? nullptr : chain->run});
    for (size_t i = at; i < at + count; ++i) {
      Instruction& s = instructions[i];
      if (chain != end) s.op = chain->links[i - at].op;
      if (writes(s.op) && s.op != Instruction::kView) s.in_memory = read_outside(instructions, at, at + count, s.dst);
    }
    at += count;
  }
}

void Engine::whole_output() { whole_output_ = true; }

void Engine::finish(int64_t arena_bytes, int output) {
  const Check need("the program");
  need(!finished_ && !drafts_.empty(), "it is empty, or finished already");
  need(windows_input_ < 0, "it ends with windows that no linear layer reads");
  need(arena_bytes >= needed_arena_, "the arena has ", arena_bytes, " bytes, but tensors end at ", needed_arena_);
  const int64_t memory = machine_memory();
  need.memory(arena_bytes <= memory, "the tensors of an image need ", arena_bytes, " bytes at a time, more than the ", memory,
       " bytes of memory here");
  tensor(need, output);
  arena_bytes_ = arena_bytes, output_ = output;
  for (auto& draft : drafts_) {
    Operation& op = draft->op;
    chain_instructions(draft->instructions, draft->segments);
    op.segments = draft->segments.data(), op.segment_count = static_cast<int64_t>(draft->segments.size());
    op.instruction_count = static_cast<int64_t>(draft->instructions.size());
    int64_t in_memory = 0;
    for (const Instruction& s : draft->instructions) in_memory += s.in_memory ? padded(s.width) : 0;
    if (in_memory * kTileRows <= kNearFloats) op.body_rows = kTileRows;
    op.parts = draft->parts.data(), op.part_count = static_cast<int64_t>(draft->parts.size());
    if (op.kind == Operation::kConcat) {
      int64_t count = 0;
      for (const Part& part : draft->parts) count += part.count;
      need(count == op.rows, "a concatenation has ", op.rows, " rows, but its parts have ", count);
    }
    const int64_t floats = op.tile_floats + op.extra_floats + op.slot_floats * op.body_rows + 256;
    need.memory(floats <= memory / 4, "operation ", operations_.size(), " (", draft->name, ") needs ", floats,
         " floats of scratch, more than memory here holds");
    scratch_floats_ = std::max(scratch_floats_, floats);
    operations_.push_back(op);
  }
  group_operations();
  finished_ = true;
}

// Operations that join the one before share its phase. Scans have a phase before that of their bodies.
void Engine::group_operations() {
  for (size_t i = 0; i < operations_.size(); ++i) {
    const int index = static_cast<int>(i);
    const bool scan = in_blocks(operations_[i].kind);
    if (!drafts_[i]->joins) {
      if (scan) phases_.push_back({index, index, true, 0, 0});
      phases_.push_back({index, index, false, 0, 0});
    }
    if (scan) phases_[phases_.size() - 2].last = index + 1;
    phases_.back().last = index + 1;
  }
  // Without an instruction in any body a phase of rows does nothing: a scan may write its codes itself.
  const auto idle = [&](const Phase& phase) {
    return !phase.scan && std::all_of(operations_.begin() + phase.first, operations_.begin() + phase.last,
                                      [](const Operation& op) { return op.instruction_count == 0; });
  };
  phases_.erase(std::remove_if(phases_.begin(), phases_.end(), idle), phases_.end());
  for (Phase& phase : phases_) {
    Check("the program")(phase.last - phase.first <= kMaxTasks, phase.last - phase.first,
                         " operations run together, more than ", kMaxTasks);
    if (!phase.scan) cut_rows(phase);
  }
}

void Engine::cut_rows(Phase& phase) const {
  double cost = 0;
  for (int op = phase.first; op < phase.last; ++op) {
    cost += row_nanoseconds(operations_[op]);
    if (operations_[op].int_linear.tiled) phase.rows = kernels_->rows;
  }
  const int64_t rows = operations_[phase.first].rows, tiles = (rows + phase.rows - 1) / phase.rows;
  int64_t each = static_cast<int64_t>(kTaskNanoseconds / (cost * static_cast<double>(phase.rows))) + 1;
  each = std::max(each, (tiles + kMaxTasks - 1) / kMaxTasks);
  phase.each = each * phase.rows, phase.tasks = (rows + phase.each - 1) / phase.each;
}

// Two threads take blocks from both ends and meet once. More threads would write to the same cache lines of codes, unless
// a task fills whole lines.
void Engine::cut_scans(int threads) {
  for (Phase& phase : phases_) {
    if (!phase.scan) continue;
    const auto count = [&] {
      phase.tasks = 0;
      for (int op = phase.first; op < phase.last; ++op) phase.tasks += scan_tasks(operations_[op], phase.each);
      return phase.tasks;
    };
    phase.each = threads > 2 ? kLineBlocks : 1;
    while (count() > kMaxTasks) phase.each *= 2;
  }
}

std::vector<std::string> Engine::bodies() const {
  std::vector<std::string> found;
  for (const Operation& op : operations_) {
    std::string body;
    for (const Segment* g = op.segments; g != op.segments + op.segment_count; ++g)
      for (int64_t i = 0; i < g->count; ++i) {
        if (!body.empty()) body += i ? " " : " | ";
        body += kOpNames[g->instructions[i].op];
      }
    found.push_back(body);
  }
  return found;
}

}  // namespace visq::engine
