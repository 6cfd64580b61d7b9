// AVX-512 VNNI, and the matrix instructions of AMX.
#pragma once
#include "lanes/avx512vnni.h"
#include "lanes/tile_shapes.h"

namespace visq::VISQ_LEVEL {

// Assembly, because GCC's intrinsics do not say which memory they read (GCC 12 names 8 of the 64 bytes of the shapes), so
// the compiler may move stores behind them. Names and order of operands are those of the intrinsics.
struct Tiles {
  VISQ_INLINE void configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }

  // Frees the tiles, so that interrupting the thread costs no more than before.
  VISQ_INLINE void release() { __asm__ volatile("tilerelease"); }

  template <int T>
  VISQ_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }

  // `stride` [bytes] leads from row to row.
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

}  // namespace visq::VISQ_LEVEL
