// What runs together, decided when a program is finished: the instructions of a body in chains, operations in phases,
// phases in tasks.
#include <algorithm>

#include "engine.h"

namespace visq::engine {
namespace {

constexpr int64_t kNearFloats = 4096;  // of a body's registers, that stay in the first cache

const char* const kOpNames[] = {
    "view",         "load",       "load_row", "silu",       "softplus", "gelu",        "neg",
    "add",          "mul",        "add_constant", "mul_constant", "mul_scalar", "rms_norm", "layer_norm",
    "round",        "round_table", "rotate",  "store",      "store_floats", "store_table", "store_rounded"};

constexpr int64_t kLineBlocks = 64 / kChannels;  // of a scan, that fill a line of codes

// About what a row costs, to cut work into tasks that are neither too many nor too long to wait for.
constexpr double kTaskNanoseconds = 3000;
double row_nanoseconds(const Operation& op) {
  double width = static_cast<double>(op.width), products = 0;
  if (op.kind == Operation::kIntLinear) products = width * static_cast<double>(op.int_linear.K) / 200;
  if (op.kind == Operation::kIntConv2d || op.kind == Operation::kFloatConv2d)
    products = width * static_cast<double>(op.conv2d.K * op.conv2d.K) / 16;
  if (op.kind == Operation::kFloatLinear) products = width * static_cast<double>(op.float_linear.K) / 50;
  return products + (width + 16) * (1 + static_cast<double>(op.step_count)) / 16;
}

}  // namespace

// Cuts a body into what runs together: the first chain that fits, again and again.
void Engine::chain_steps(std::vector<Step>& steps, std::vector<Segment>& segments) const {
  // Floats that are read in place stand between no others.
  std::stable_partition(steps.begin(), steps.end(), [](const Step& s) { return s.op == Step::kView; });
  const auto fits = [&](size_t at, const ChainShape& chain) {
    if (at + static_cast<size_t>(chain.length) > steps.size()) return false;
    const auto comes_from = [&](int link, int reg, int64_t offset) {
      if (link >= 0) return steps[at + link].dst == reg && offset == 0 && steps[at + link].width == steps[at].width;
      for (int64_t i = 0; i < chain.length; ++i)
        if (writes(steps[at + i].op) && steps[at + i].dst == reg) return false;
      return true;
    };
    for (int64_t i = 0; i < chain.length; ++i) {
      const Step& s = steps[at + i];
      const LinkShape& link = chain.links[i];
      if (s.width != steps[at].width) return false;
      if (link.op == Step::kStoreRounded) {
        const Step& round = steps[at + link.a];
        if (s.op != Step::kStore || tensors_[s.tensor].codes != round.codes || s.a != round.a ||
            s.a_offset != round.a_offset)
          return false;
        continue;
      }
      if (s.op != link.op) return false;
      if (reads(s.op) && !comes_from(link.a, s.a, s.a_offset)) return false;
      if (is_binary(s.op) && !comes_from(link.b, s.b, s.b_offset)) return false;
    }
    return true;
  };
  for (size_t at = 0; at < steps.size();) {
    const ChainShape *chain = kernels_->chains, *end = chain + kernels_->chain_count;
    while (chain != end && !fits(at, *chain)) ++chain;
    const size_t count = chain == end ? 1 : static_cast<size_t>(chain->length);
    segments.push_back({&steps[at], static_cast<int64_t>(count), chain == end ? nullptr : chain->run});
    // Only what is read elsewhere is written.
    for (size_t i = at; i < at + count; ++i) {
      if (chain != end) steps[i].op = chain->links[i - at].op;
      if (!writes(steps[i].op) || steps[i].op == Step::kView) continue;
      steps[i].live = false;
      for (size_t j = 0; j < steps.size(); ++j) {
        const bool first = reads(steps[j].op) && steps[j].a == steps[i].dst;
        if ((j < at || j >= at + count) && (first || (is_binary(steps[j].op) && steps[j].b == steps[i].dst)))
          steps[i].live = true;
      }
    }
    at += count;
  }
}

void Engine::finish(int64_t arena_bytes, int output) {
  need(!finished_ && !building_.empty(), "the program is empty or finished");
  need(arena_bytes >= needed_arena_ && arena_bytes <= kMaxBytes, "the arena is too small");
  tensor(output);
  arena_bytes_ = arena_bytes, output_ = output;
  for (auto& b : building_) {
    chain_steps(b->steps, b->segments);
    b->op.segments = b->segments.data(), b->op.segment_count = static_cast<int64_t>(b->segments.size());
    b->op.step_count = static_cast<int64_t>(b->steps.size());
    int64_t live = 0;
    for (const Step& s : b->steps) live += s.live ? padded(s.width) : 0;
    if (live * kTileRows <= kNearFloats) b->op.body_rows = kTileRows;
    b->op.parts = b->parts.data(), b->op.part_count = static_cast<int64_t>(b->parts.size());
    if (b->op.kind == Operation::kConcat) {
      int64_t count = 0;
      for (const Part& part : b->parts) count += part.count;
      need(count == b->op.rows, "rows are not those of the parts");
    }
    const Operation& op = b->op;
    const int64_t floats = op.tile_floats + op.extra_floats + op.slot_floats * op.body_rows + 256;
    if (floats > scratch_floats_) scratch_floats_ = floats;
    const int index = static_cast<int>(operations_.size());
    if (!b->joins) {
      if (is_scan(op.kind)) phases_.push_back({index, index, true, 0, 0});
      phases_.push_back({index, index, false, 0, 0});
    }
    if (is_scan(op.kind)) phases_[phases_.size() - 2].last = index + 1;
    phases_.back().last = index + 1;
    operations_.push_back(op);
  }
  // What a phase of rows does is in bodies, but scans write codes themselves.
  const auto idle = [&](const Phase& phase) {
    return !phase.scan && std::all_of(operations_.begin() + phase.first, operations_.begin() + phase.last,
                                      [](const Operation& op) { return op.step_count == 0; });
  };
  phases_.erase(std::remove_if(phases_.begin(), phases_.end(), idle), phases_.end());
  for (Phase& phase : phases_) {
    need(phase.last - phase.first <= kMaxTasks, "too many operations together");
    if (phase.scan) continue;
    double cost = 0;
    for (int op = phase.first; op < phase.last; ++op) {
      cost += row_nanoseconds(operations_[op]);
      if (operations_[op].int_linear.tiled) phase.rows = kernels_->rows;
    }
    const int64_t rows = operations_[phase.first].rows, tiles = (rows + phase.rows - 1) / phase.rows;
    int64_t each = static_cast<int64_t>(kTaskNanoseconds / (cost * static_cast<double>(phase.rows))) + 1;
    if (each < (tiles + kMaxTasks - 1) / kMaxTasks) each = (tiles + kMaxTasks - 1) / kMaxTasks;
    phase.each = each * phase.rows, phase.tasks = (rows + phase.each - 1) / phase.each;
  }
  finished_ = true;
}

// Two threads take tasks from both ends, a block each, and meet once; more would write codes to the same lines if a task
// did not fill them.
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
        body += kOpNames[g->steps[i].op];
      }
    found.push_back(body);
  }
  return found;
}

}  // namespace visq::engine
