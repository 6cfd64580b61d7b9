// What each operation computes its rows from.
#pragma once
#include "kernels/conv1d.h"
#include "kernels/conv2d.h"
#include "kernels/linear.h"
#include "kernels/maps.h"
#include "kernels/windows.h"

namespace visq::engine::VISQ_LEVEL {

// Rows of other tensors, and constant rows, one part after the other.
template <class V>
View concat_source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  const int64_t stride = padded(op.width);
  for (int64_t i = 0; i < count; ++i) {
    int64_t row = first + i;
    const Part* part = op.parts;
    while (row >= part->count) row -= part++->count;
    float* out = f.scratch + i * stride;
    const float* from = part->tensor < 0 ? part->constant
                                         : float_row<V>(f, f.tensors[part->tensor], part->first + row, out);
    if (from != out) __builtin_memcpy(out, from, op.width * sizeof(float));
  }
  return {f.scratch, stride};
}

// Returns `count` rows from `first` on: in place where a tensor holds them as floats, else in scratch.
template <class V>
View source(const Operation& op, const Frame& f, int64_t first, int64_t count) {
  switch (op.kind) {
    case Operation::kPatches: return patches_source<V>(op, f, first, count);
    case Operation::kConcat: return concat_source<V>(op, f, first, count);
    case Operation::kIntLinear:
    case Operation::kFloatLinear: return linear_source<V>(op, f, first, count);
    case Operation::kIntConv:
    case Operation::kFloatConv: return conv_source<V>(op, f, first, count);
    case Operation::kIntConv2d:
    case Operation::kFloatConv2d: return conv2d_source<V>(op, f, first, count);
    case Operation::kTranspose: return transpose_source<V>(op, f, first, count);
    case Operation::kShuffle: return shuffle_source<V>(op, f, first, count);
    case Operation::kBilinear: return bilinear_source<V>(op, f, first, count);
    case Operation::kAveragePool: return average_pool_source<V>(op, f, first, count);
    case Operation::kEnterWindows:
    case Operation::kLeaveWindows: return windows_source<V>(op, f, first, count);
    case Operation::kSample: return sample_source<V>(op, f, first, count);
    case Operation::kMergeSamples: return merge_source<V>(op, f, first, count);
    case Operation::kMean: return mean_source<V>(op, f);
    case Operation::kFixedScan:
    case Operation::kFusedScan:
    case Operation::kLadderScan:
    case Operation::kFloatScan:
    case Operation::kAttention: {
      const Tensor& y = f.tensors[op.y];
      if (y.codec) break;
      return {f.row<float>(y, first), y.stride};
    }
    case Operation::kRows: break;
  }
  return {f.scratch, 0};
}

}  // namespace visq::engine::VISQ_LEVEL
