// The kernels of one vector type, gathered. Included only by kernels_<isa>.cpp.
#pragma once
#include "body.h"
#include "fixed_scan.h"
#include "float_scan.h"
#include "fused_scan.h"

namespace visq::engine {

template <class V>
void prepare_scan(const Operation& op, const Frame& f) {
  if (op.kind == Operation::kFixedScan) prepare_steps<V>(op.fixed_scan.steps, op, f);
  if (op.kind == Operation::kFusedScan) prepare_steps<V>(op.fused_scan.steps, op, f);
}

template <class V>
void scan(const Operation& op, const Frame& f, int64_t block) {
  if (op.kind == Operation::kFixedScan)
    fixed_scan_block<V>(op, f, block);
  else if (op.kind == Operation::kFusedScan)
    fused_scan_block<V>(op, f, block);
  else
    float_scan_block<V>(op, f, block);
}

template <class V>
const Kernels* kernel_table(const char* name) {
  static const Kernels table = {
      name,    V::W,    TileShape<V>::kPanel, Lanes<V>::kStep,     source<V>,
      body<V>, prepare_scan<V>, scan<V>, ChainList<V>::chains, ChainList<V>::count,
  };
  return &table;
}

}  // namespace visq::engine
