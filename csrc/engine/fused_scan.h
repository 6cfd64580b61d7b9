// The selective scan whose Abar and Bbar have no codes and whose y reads the states before they are rounded,
// visq.runtime.fused_scan.fused_scan. Limits of what enters a sum keep it in its lane: saturating sums, which would
// clamp the states for free, wait for the same units as multiplications (on Zen 4).
#pragma once
#include "scan_loop.h"

namespace visq::engine {

// Limits of the input, and of what is kept of the state where its scale shrinks by more than half.
constexpr int kFusedInputHigh = 14335, kKeptHigh = 16384;

// What a step adds up is in units of 2^-6 of a byte, which holds the state's code in its high bits; kBytes: all of it, so
// that packing clamps. States lie as bytes where two registers of them are advanced together.
template <class V, bool kAligned, bool kBytes>
struct FusedRecurrence {
  using K = Lanes<V>;
  using T = typename V::T;
  using S = typename K::S;
  using I = typename K::I;
  using Count = typename K::Count;
  const FusedScan& p;
  T delta_scale, input_channel;
  Count whole, join, up;
  S round, mask, low, high;

  struct Step {
    S d, g;
    const int16_t* power;
    int lift;
  };

  __attribute__((always_inline)) FusedRecurrence(const FusedScan& p, int64_t c) : p(p) {
    delta_scale = V::load(p.steps.delta_scale + c), input_channel = V::load(p.steps.input_channel + c);
    whole = K::count(p.steps.shift - 16), join = K::count(32 - p.steps.shift);
    up = K::count(2);
    const int unit = 1 << p.point;
    round = K::sset1(unit / 2), mask = K::sset1(-unit);
    low = K::sset1(p.state_low * unit), high = K::sset1(p.state_high * unit);
  }

  __attribute__((always_inline)) Step make_step(int64_t s, T delta, T u) const {
    Step step;
    K::both(V::mul(delta, delta_scale), V::mul(V::mul(V::mul(delta, u), input_channel), V::set1(p.steps.input_step[s])),
            step.d, step.g);
    step.d = K::max(step.d, K::sset1(0));
    step.g = K::min(K::max(step.g, K::sset1(-kFusedInputHigh)), K::sset1(kFusedInputHigh));
    step.power = p.power + s * 8;
    step.lift = p.steps.lift[s];
    return step;
  }

  template <int U>
  __attribute__((always_inline)) I advance(const Step& s, const uint16_t* a, const int16_t* beta, const int16_t* C,
                                           int16_t* state, I sum) const {
    const S power[4] = {K::spair(s.power), K::spair(s.power + 2), K::spair(s.power + 4), K::spair(s.power + 6)};
    S kept[U], q[U];
    power16<V, U, kAligned>(s.d, a, power, kAligned, whole, join, kept);
    if constexpr (U == 1)
      q[0] = K::sload(state);
    else
      for (int j = 0; j < U; j += 2) K::load_packed(state + j * V::W, q[j], q[j + 1]);
    VISQ_EACH q[j] = K::mulhi(q[j], kept[j]);
    for (int i = 0; i < s.lift; ++i) {
      VISQ_EACH q[j] = K::adds(q[j], q[j]);
      VISQ_EACH q[j] = K::min(K::max(q[j], K::sset1(-kKeptHigh)), K::sset1(kKeptHigh));
    }
    VISQ_EACH q[j] = K::add(q[j], K::mulhrs(K::spair(beta + j * 2), s.g));
    VISQ_EACH sum = K::dot16(sum, q[j], K::spair(C + j * 2));
    if constexpr (kBytes && U > 1) {
      VISQ_EACH q[j] = K::mulhrs(q[j], K::sset1(1 << 9));  // q / 2^6, rounded
    } else {
      VISQ_EACH q[j] = K::min(K::max(K::and_(K::add(q[j], round), mask), low), high);
      if constexpr (U > 1) VISQ_EACH q[j] = K::sar6(q[j]);
    }
    if constexpr (U == 1)
      K::sstore(state, K::shl(q[0], up));
    else
      for (int j = 0; j < U; j += 2) K::store_packed(state + j * V::W, q[j], q[j + 1]);
    return sum;
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

}  // namespace visq::engine
