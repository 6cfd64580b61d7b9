// Vectors of 16 bytes by the compiler's vector extensions: no intrinsics, so it compiles for any processor. It is where
// the port to a new instruction set starts (docs/add-an-isa.md), and it tests the fallbacks of generic.h on vectors.
#pragma once
#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct PortableTypes {
  typedef float T __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef int16_t S __attribute__((vector_size(16)));
};

struct Vector : Generic<PortableTypes> {
  VISQ_INLINE T set1(float x) { return T{x, x, x, x}; }
  VISQ_INLINE T load(const float* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  VISQ_INLINE T add(T a, T b) { return a + b; }
  VISQ_INLINE T sub(T a, T b) { return a - b; }
  VISQ_INLINE T mul(T a, T b) { return a * b; }
  VISQ_INLINE T div(T a, T b) { return a / b; }
  VISQ_INLINE T min(T a, T b) { return a < b ? a : b; }
  VISQ_INLINE T max(T a, T b) { return a > b ? a : b; }
  VISQ_INLINE S smin(S a, S b) { return a < b ? a : b; }
  VISQ_INLINE S smax(S a, S b) { return a > b ? a : b; }
};

}  // namespace visq::VISQ_LEVEL
