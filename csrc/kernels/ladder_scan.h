// The fused scan of a decay ladder (ladder_scan of visq.integer): Abar[c, n] = r^(n + 1). A step takes one exponential a
// channel. Four registers hold the first eight powers times the ratio of the state's scales; after each lockstep they are
// multiplied by r^8.
#pragma once
#include "kernels/arithmetic.h"
#include "kernels/fused_scan.h"

namespace visq::engine::VISQ_LEVEL {

template <class V, bool kBytes>
struct LadderRecurrence : FusedUpdate<V, kBytes> {
  using T = typename V::T;
  using S = typename V::S;
  using I = typename V::I;
  const LadderScan& p;
  T rate, input_channel;

  struct Step {
    S r, g;
    int64_t s;
  };
  struct Powers {
    S power[kLockstep], eighth, g;
    int lift;
    int64_t left;  // pairs of states
  };

  __attribute__((always_inline)) LadderRecurrence(const LadderScan& p, int64_t c)
      : FusedUpdate<V, kBytes>(p.state_low, p.state_high, p.point), p(p) {
    rate = V::load(p.rate + c), input_channel = V::load(p.steps.input_channel + c);
  }

  __attribute__((always_inline)) Step make_step(int64_t s, T delta, T u) const {
    Step step;
    T x[1] = {V::mul(delta, rate)};
    exp2<V, 1>(x);
    V::both2(V::mul(x[0], V::set1(32768.0f)),
             V::mul(V::mul(V::mul(delta, u), input_channel), V::set1(p.steps.input_step[s])), step.r,
             step.g);
    step.g = limit_input<V>(step.g);
    step.s = s;
    return step;
  }

  // The powers are made when their step begins: the registers do not hold those of two steps.
  __attribute__((always_inline)) Powers begin(const Step& step) const {
    Powers found;
    const S square = V::mulhrs(step.r, step.r), fourth = V::mulhrs(square, square);
    found.eighth = V::mulhrs(fourth, fourth);
    found.power[0] = V::mulhrs(V::alternate(step.r, square), V::sset1(p.ratio[step.s]));
    found.power[1] = V::mulhrs(found.power[0], square);
    found.power[2] = V::mulhrs(found.power[0], fourth);
    found.power[3] = V::mulhrs(found.power[1], fourth);
    found.g = step.g, found.lift = p.steps.lift[step.s], found.left = p.steps.N / 2;
    return found;
  }

  template <int U>
  __attribute__((always_inline)) I advance(Powers& s, int64_t, const int16_t* beta, const int16_t* C, int16_t* state,
                                           I sum) const {
    S power[U];
    VISQ_EACH power[j] = s.power[j];
    if constexpr (U == kLockstep) {
      s.left -= kLockstep;
      if (s.left > 0) VISQ_EACH s.power[j] = V::mulhrs(power[j], s.eighth);
    } else {
      for (int j = 0; j + 1 < kLockstep; ++j) s.power[j] = s.power[j + 1];  // fewer than kLockstep are left
    }
    return this->template update<U>(power, s.lift, s.g, beta, C, state, sum);
  }
};

template <class V>
void ladder_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const LadderScan& p = op.ladder_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.point == 6 && p.state_low == -128 && p.state_high == 127)
      scan_channels<V>(LadderRecurrence<V, true>(p, c), p.steps, op, f, c);
    else
      scan_channels<V>(LadderRecurrence<V, false>(p, c), p.steps, op, f, c);
  }
}

}  // namespace visq::engine::VISQ_LEVEL
