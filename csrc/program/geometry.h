// Windows over square maps.
#pragma once
#include "program/check.h"

namespace visq::engine {

// How many windows fit a side of a map; each of them meets the map.
inline int64_t windows(const Check& need, int64_t side, int64_t kernel, int64_t stride, int64_t padding) {
  need(padding >= 0 && padding < kernel && kernel <= side + 2 * padding, "windows of ", kernel, " with padding ", padding,
       " do not fit a side of ", side);
  return (side + 2 * padding - kernel) / stride + 1;
}

inline int64_t square_side(const Check& need, int64_t rows) {
  int64_t side = 1;
  while (side * side < rows) ++side;
  need(side * side == rows, "its input has ", rows, " rows, which is no square map");
  return side;
}

}  // namespace visq::engine
