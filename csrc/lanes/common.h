// What every instruction set's lanes share: how functions are declared, and the polynomial of 2^x.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

// Each level compiles the same sources with flags of its own. Its code lies in a namespace named VISQ_LEVEL, so that
// the linker never takes a function from another level's object (tests/csrc/test_shared_symbols.py).
#if !defined(VISQ_LEVEL)
#error "compile with -DVISQ_LEVEL=<name of the instruction set>, see CMakeLists.txt"
#endif

#define VISQ_INLINE static inline __attribute__((always_inline))

namespace visq {

// 2^x = 2^n 2^r with n = rint(x), |r| <= 1/2 and 2^r = 1 + r P(r), P minimax in relative error (1.6e-7 with rounding).
// The constant is exactly 1, so exp(0) is exactly 1.
constexpr int kExp2Terms = 5;
constexpr float kExp2[kExp2Terms] = {1.326472731307149e-3f, 9.671512991189957e-3f, 5.550733581185341e-2f,
                                     2.4022242426872253e-1f, 6.931470036506653e-1f};
constexpr float kLog2e = 1.44269504088896341f;

namespace VISQ_LEVEL {

// p = 2^r, for U vectors in lockstep: a single polynomial is one long chain of dependent instructions.
template <class V, int U>
VISQ_INLINE void exp2_fraction(const typename V::T* r, typename V::T* p) {
  for (int j = 0; j < U; ++j) p[j] = V::set1(kExp2[0]);
  for (int i = 1; i < kExp2Terms; ++i)
    for (int j = 0; j < U; ++j) p[j] = V::fma(p[j], r[j], V::set1(kExp2[i]));
  for (int j = 0; j < U; ++j) p[j] = V::fma(p[j], r[j], V::set1(1.0f));
}

}  // namespace VISQ_LEVEL
}  // namespace visq
