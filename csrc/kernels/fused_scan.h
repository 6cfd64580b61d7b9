// The selective scan whose Abar and Bbar have no codes and whose y reads the states before they are rounded (fused_scan of
// visq.integer). Limits of the addends keep sums in their lanes. Saturating additions would do without limits, but on Zen 4
// they wait for the same units as multiplications.
#pragma once
#include "kernels/scan_loop.h"

namespace visq::engine::VISQ_LEVEL {

// Limits of the input, and of the kept state where its scale shrinks by more than half.
constexpr int kFusedInputHigh = 14335, kKeptHigh = 16384;

// Updates the states, given Abar times the ratio of scales. A step adds up in units of 2^-6 of a byte, whose high bits are
// the state's code. With kBytes the code fills the byte, so that packing clamps it. States are stored as bytes where two
// registers of them advance together, else as shorts.
template <class V, bool kBytes>
struct FusedUpdate {
  using S = typename V::S;
  using I = typename V::I;
  typename V::Count two;
  S round, mask, low, high;

  __attribute__((always_inline)) FusedUpdate(int state_low, int state_high, int point) {
    two = V::count(2);
    const int unit = 1 << point;
    round = V::sset1(unit / 2), mask = V::sset1(-unit);
    low = V::sset1(state_low * unit), high = V::sset1(state_high * unit);
  }

  template <int U>
  __attribute__((always_inline)) I update(const S (&power)[U], int lift, S g, const int16_t* beta, const int16_t* C,
                                          int16_t* state, I sum) const {
    S q[U];
    if constexpr (U == 1)
      q[0] = V::sload(state);
    else
      for (int j = 0; j < U; j += 2) V::load_packed(state + j * V::W, q[j], q[j + 1]);
    VISQ_EACH q[j] = V::mulhi(q[j], power[j]);
    for (int i = 0; i < lift; ++i) {
      VISQ_EACH q[j] = V::sadds(q[j], q[j]);
      VISQ_EACH q[j] = V::smin(V::smax(q[j], V::sset1(-kKeptHigh)), V::sset1(kKeptHigh));
    }
    VISQ_EACH q[j] = V::sadd(q[j], V::mulhrs(V::spair(beta + j * 2), g));
    VISQ_EACH sum = V::dot16(sum, q[j], V::spair(C + j * 2));
    if constexpr (kBytes && U > 1) {
      VISQ_EACH q[j] = V::mulhrs(q[j], V::sset1(1 << 9));  // q / 2^6, rounded
    } else {
      VISQ_EACH q[j] = V::smin(V::smax(V::sand(V::sadd(q[j], round), mask), low), high);
      if constexpr (U > 1) VISQ_EACH q[j] = V::sar6(q[j]);
    }
    if constexpr (U == 1)
      V::sstore(state, V::shl(q[0], two));
    else
      for (int j = 0; j < U; j += 2) V::store_packed(state + j * V::W, q[j], q[j + 1]);
    return sum;
  }
};

// The input in fixed point, within its limits.
template <class V>
VISQ_INLINE typename V::S limit_input(typename V::S g) {
  return V::smin(V::smax(g, V::sset1(-kFusedInputHigh)), V::sset1(kFusedInputHigh));
}

template <class V, bool kAligned, bool kBytes>
struct FusedRecurrence : FusedUpdate<V, kBytes> {
  using T = typename V::T;
  using S = typename V::S;
  using I = typename V::I;
  const FusedScan& p;
  const uint16_t* a;
  T delta_scale, input_channel;
  typename V::Count whole, up;

  struct Step {
    S d, g;
    const int16_t* power;
    int lift;
  };

  __attribute__((always_inline)) FusedRecurrence(const FusedScan& p, int64_t c)
      : FusedUpdate<V, kBytes>(p.state_low, p.state_high, p.point), p(p), a(p.steps.a + c * p.steps.N) {
    delta_scale = V::load(p.steps.delta_scale + c), input_channel = V::load(p.steps.input_channel + c);
    whole = V::count(p.steps.shift - 16), up = V::count(32 - p.steps.shift);
  }

  __attribute__((always_inline)) Step make_step(int64_t s, T delta, T u) const {
    Step step;
    V::both2(V::mul(delta, delta_scale), V::mul(V::mul(V::mul(delta, u), input_channel), V::set1(p.steps.input_step[s])),
            step.d, step.g);
    step.d = V::smax(step.d, V::sset1(0));
    step.g = limit_input<V>(step.g);
    step.power = p.power + s * 8;
    step.lift = p.steps.lift[s];
    return step;
  }

  __attribute__((always_inline)) Step begin(const Step& s) const { return s; }

  template <int U>
  __attribute__((always_inline)) I advance(const Step& s, int64_t at, const int16_t* beta, const int16_t* C,
                                           int16_t* state, I sum) const {
    const S power[4] = {V::spair(s.power), V::spair(s.power + 2), V::spair(s.power + 4), V::spair(s.power + 6)};
    S kept[U];
    power16<V, U, kAligned>(s.d, a + at, power, kAligned, whole, up, kept);
    return this->template update<U>(kept, s.lift, s.g, beta, C, state, sum);
  }
};

template <class V>
void fused_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FusedScan& p = op.fused_scan;
  const bool aligned = p.steps.shift == 16, bytes = p.point == 6 && p.state_low == -128 && p.state_high == 127;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (aligned && bytes)
      scan_channels<V>(FusedRecurrence<V, true, true>(p, c), p.steps, op, f, c);
    else if (aligned)
      scan_channels<V>(FusedRecurrence<V, true, false>(p, c), p.steps, op, f, c);
    else
      scan_channels<V>(FusedRecurrence<V, false, false>(p, c), p.steps, op, f, c);
  }
}

}  // namespace visq::engine::VISQ_LEVEL
