// The matrix instructions of AMX: eight tiles of each thread, of at most 16 rows of 64 bytes.
#pragma once
#include "../vec.h"

namespace visq::engine {

// The shapes of the tiles, as the processor reads them. A tile without rows may not be used.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Not the intrinsics: GCC's do not tell the compiler which memory they read (GCC 12 names 8 of the 64 bytes of the
// shapes), so that it may put the stores of it after them. The names and the order of operands are theirs.
struct AmxTiles {
  VISQ_INLINE void configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }

  // Afterwards the thread holds no tiles: saving its state when it is interrupted is as cheap as before.
  VISQ_INLINE void release() { __asm__ volatile("tilerelease"); }

  template <int T>
  VISQ_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }

  // `stride`: bytes from row to row.
  template <int T>
  VISQ_INLINE void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }

  template <int T>
  VISQ_INLINE void store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }

  // C[m][n] += sum over k of A[m][k] * B[k / 4][4 n + k % 4]: int32, uint8 and int8, exact modulo 2^32.
  template <int C, int A, int B>
  VISQ_INLINE void dot() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace visq::engine
