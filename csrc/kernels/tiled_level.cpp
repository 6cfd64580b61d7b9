// The engine's kernels of a level with AMX: those of avx512vnni, but for integer linear layers that fill a tile.
#include VISQ_LANES

#include "kernels/tiled_linear.h"

namespace visq::engine::avx512vnni {
const EngineKernels* kernels();
}

namespace visq::engine::VISQ_LEVEL {
namespace {

View source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  using V = ::visq::VISQ_LEVEL::Vector;
  using Tiles = ::visq::VISQ_LEVEL::Tiles;
  if (!op.int_linear.tiled) return avx512vnni::kernels()->source(op, f, first, count);
  const CodeRows codes = code_rows(op, f, first, count, f.scratch + op.tile_floats);
  const IntRows rows = {reinterpret_cast<const char*>(codes.data), codes.stride, f.scratch, padded(op.width), first};
  tiled_linear<V, Tiles>(op.int_linear, rows, count);
  return {rows.out, rows.out_stride};
}

}  // namespace

const EngineKernels* kernels() {
  static const EngineKernels table = [] {
    EngineKernels changed = *avx512vnni::kernels();
    changed.source = source, changed.rows = kMatrixRows;
    return changed;
  }();
  return &table;
}

}  // namespace visq::engine::VISQ_LEVEL
