// Windows over maps.
#pragma once
#include "program/check.h"
#include "program/program.h"

namespace visq::engine {

// How many windows fit a side of a map; each of them meets the map.
inline int64_t windows_along(const Check& need, int64_t side, int64_t kernel, int64_t stride, int64_t padding) {
  need(padding >= 0 && padding < kernel && kernel <= side + 2 * padding, "windows of ", kernel, " with padding ", padding,
       " do not fit a side of ", side);
  return (side + 2 * padding - kernel) / stride + 1;
}

struct MapSize {
  int64_t height, width;
};

// The map that a tensor holds: as declared, or square.
inline MapSize map_of(const Check& need, const Tensor& t) {
  if (t.map_height) return {t.map_height, t.rows / t.map_height};
  int64_t side = 1;
  while (side * side < t.rows) ++side;
  need(side * side == t.rows, "its input has ", t.rows, " rows, which is no square map");
  return {side, side};
}

}  // namespace visq::engine
