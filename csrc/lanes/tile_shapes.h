// The shapes of AMX's eight tiles, as the processor reads them: at most 16 rows of 64 bytes. A tile without rows must not
// be used.
#pragma once
#include "lanes/common.h"

namespace visq::VISQ_LEVEL {

struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

}  // namespace visq::VISQ_LEVEL
