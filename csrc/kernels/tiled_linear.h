// Integer linear layers on AMX tiles. All but the sums of products is as on AVX-512 VNNI, the packed weights included: a
// tile is 16 steps of the sum (its rows) by 16 outputs. Its rows lie as far apart as the panel has blocks.
#pragma once
#include "kernels/linear.h"
#include "lanes/tile_shapes.h"


namespace visq::engine::VISQ_LEVEL {

// A tile has 16 rows, of 64 bytes or 16 sums.
constexpr int64_t kTileSide = 16, kTileBytes = 64;

// Computes the sums of M by B tiles, [rows][kSums]. Four tiles of sums, two of rows and two of weights are all eight that
// there are, and each tile that is loaded is used twice.
constexpr int64_t kSums = 2 * kTileSide;

template <class Tiles, int M, int B>
VISQ_INLINE void tile_sums(const char* x, int64_t stride, const char* w, int64_t step_bytes, int64_t K, int32_t* sums) {
  Tiles::template zero<0>();
  if constexpr (B == 2) Tiles::template zero<1>();
  if constexpr (M == 2) Tiles::template zero<2>();
  if constexpr (M == 2 && B == 2) Tiles::template zero<3>();
  for (int64_t k = 0; k < K; k += kTileBytes, x += kTileBytes, w += kTileBytes / 4 * step_bytes) {
    Tiles::template load<4>(x, stride);
    Tiles::template load<6>(w, step_bytes);
    Tiles::template dot<0, 4, 6>();
    if constexpr (B == 2) {
      Tiles::template load<7>(w + kTileBytes, step_bytes);
      Tiles::template dot<1, 4, 7>();
    }
    if constexpr (M == 2) {
      Tiles::template load<5>(x + kTileSide * stride, stride);
      Tiles::template dot<2, 5, 6>();
    }
    if constexpr (M == 2 && B == 2) Tiles::template dot<3, 5, 7>();
  }
  constexpr int64_t kRow = kSums * 4;
  Tiles::template store<0>(sums, kRow);
  if constexpr (B == 2) Tiles::template store<1>(sums + kTileSide, kRow);
  if constexpr (M == 2) Tiles::template store<2>(sums + kTileSide * kSums, kRow);
  if constexpr (M == 2 && B == 2) Tiles::template store<3>(sums + kTileSide * kSums + kTileSide, kRow);
}

// Tiles for the first 16 of `count` rows, and for the other rows if there are any.
VISQ_INLINE ::visq::VISQ_LEVEL::TileShapes tile_shapes(int64_t count) {
  const int64_t first = count < kTileSide ? count : kTileSide, others = count - first;
  ::visq::VISQ_LEVEL::TileShapes shapes;
  const auto set = [&](int tile, int64_t rows) {
    if (rows) shapes.rows[tile] = static_cast<uint8_t>(rows), shapes.bytes[tile] = kTileBytes;
  };
  set(0, first), set(1, first), set(4, first);
  set(2, others), set(3, others), set(5, others);
  set(6, kTileSide), set(7, kTileSide);
  return shapes;
}

// Computes `count` rows, at most kMatrixRows. The last tile of a sum may hold a row's padding, whose weights are zero.
template <class V, class Tiles>
void tiled_linear(const IntLinear& p, const IntRows& rows, int64_t count) {
  static_assert(V::W == kTileSide && V::kStep == 4 && kMatrixRows == 2 * kTileSide);
  constexpr int64_t kPanel = TileShape<V>::kPanel;
  static_assert(kPanel % 2 == 0);
  const int64_t K = padded(p.K, kTileBytes), blocks = p.N / V::W;
  const char* panel = static_cast<const char*>(p.packed);
  const int32_t* zero = p.zero + rows.row;
  const float* token = p.token + rows.row;
  const int64_t out_stride = rows.out_stride;
  alignas(64) int32_t sums[kMatrixRows * kSums];
  Tiles::configure(tile_shapes(count));
  for (int64_t block = 0; block < blocks; block += 2) {
    const int64_t at = block % kPanel, first = block - at;
    const int64_t width = blocks - first < kPanel ? blocks - first : kPanel;
    with_number<2>(width - at, [&](auto b) {
      constexpr int B = decltype(b)::value;
      with_number<2>(count > kTileSide ? 2 : 1, [&](auto m) {
        tile_sums<Tiles, decltype(m)::value, B>(rows.x, rows.stride, panel + at * kTileBytes, width * kTileBytes, K,
                                                sums);
      });
      for (int j = 0; j < B; ++j) {
        const int64_t n = (block + j) * V::W;
        const Outputs<V> outputs(p, n);
        float* out = rows.out + n;
        for (int64_t i = 0; i < count; ++i)
          outputs.write(V::iload(sums + i * kSums + j * V::W), zero[i], token[i], out + i * out_stride);
      }
    });
    if (at + 2 >= width) panel += width * K * V::W;
  }
  Tiles::release();
}

}  // namespace visq::engine::VISQ_LEVEL
