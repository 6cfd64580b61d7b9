// The engine's kernels of one level. Compiled once a level: VISQ_LEVEL is its namespace, VISQ_LANES the header with its
// vectors (CMakeLists.txt).
#include VISQ_LANES

#include "kernels/attention.h"
#include "kernels/body.h"
#include "kernels/fixed_scan.h"
#include "kernels/float_scan.h"
#include "kernels/fused_scan.h"
#include "kernels/ladder_scan.h"
#include "kernels/sources.h"

namespace visq::engine::VISQ_LEVEL {
namespace {

template <class V>
void prepare_scan(const Operation& op, const Frame& f) {
  if (op.kind == Operation::kFixedScan) prepare_steps<V>(op.fixed_scan.steps, op, f);
  if (op.kind == Operation::kFusedScan) prepare_steps<V>(op.fused_scan.steps, op, f);
  if (op.kind == Operation::kLadderScan) prepare_steps<V>(op.ladder_scan.steps, op, f);
}

template <class V>
void scan(const Operation& op, const Frame& f, int64_t block) {
  if (op.kind == Operation::kFixedScan)
    fixed_scan_block<V>(op, f, block);
  else if (op.kind == Operation::kFusedScan)
    fused_scan_block<V>(op, f, block);
  else if (op.kind == Operation::kLadderScan)
    ladder_scan_block<V>(op, f, block);
  else if (op.kind == Operation::kAttention)
    attention_block<V>(op, f, block);
  else
    float_scan_block<V>(op, f, block);
}

}  // namespace

const EngineKernels* kernels() {
  using V = ::visq::VISQ_LEVEL::Vector;
  static const EngineKernels table = {
      V::W,    TileShape<V>::kPanel, V::kStep,      source<V>,
      body<V>, prepare_scan<V>,      scan<V>,       ChainList<V>::chains, ChainList<V>::count,
  };
  return &table;
}

}  // namespace visq::engine::VISQ_LEVEL
