// The selective scan with codes of Abar and Bbar (fixed_scan of visq.integer). docs/integer-semantics.md shows why every
// value fits its lanes; saturation happens only where the definition has it.
#pragma once
#include "kernels/scan_loop.h"

namespace visq::engine::VISQ_LEVEL {

// Limits of the factors delta and input, so that no sum leaves its lane.
constexpr int kDeltaHigh = 31743, kInputHigh = 16375;

// How the codes of Abar and Bbar are made. kAligned is kUniform with the same bits in fewer instructions, where
// FixedScan::aligned holds.
enum class ScanCodes { kAligned, kUniform, kAbarTable, kBbarTable, kBothTables };

VISQ_SHARED constexpr bool abar_table(ScanCodes codes) {
  return codes == ScanCodes::kAbarTable || codes == ScanCodes::kBothTables;
}
VISQ_SHARED constexpr bool bbar_table(ScanCodes codes) {
  return codes == ScanCodes::kBbarTable || codes == ScanCodes::kBothTables;
}

// Replaces x by the table's values, for U registers. The first entry belongs to the number `first`.
template <class V, int U>
VISQ_INLINE void pick(const ScanTable& table, int first, typename V::S* x) {
  if constexpr (V::kSearches) {
    if (table.steps <= kFewSteps) return V::template search32<U>(table.thresholds, table.values, x);
    if (table.steps <= kManySteps) return V::template search256<U>(table.thresholds, table.values, x);
  }
  VISQ_EACH x[j] = V::pick16(table.lut, V::ssub(x[j], V::sset1(first)));
}

// States are in units of 2^-point of a code.
template <class V, ScanCodes kCodes>
struct FixedRecurrence {
  using T = typename V::T;
  using S = typename V::S;
  using I = typename V::I;
  using Count = typename V::Count;
  const FixedScan& p;
  const uint16_t* a;
  T delta_scale, drive_channel, input_channel;
  bool halves;
  Count whole, up, abar_fraction, abar_up, bbar_up, to_table;
  S power[4], abar_round, abar_high, abar_mask, bbar_round, bbar_mask, bbar_low, bbar_high;
  S state_round, state_mask, state_low, state_high;

  struct Step {
    S d, w, g, decay;
    Count lift;
  };

  __attribute__((always_inline)) FixedRecurrence(const FixedScan& p, int64_t c)
      : p(p), a(p.steps.a + c * p.steps.N) {
    delta_scale = V::load(p.steps.delta_scale + c), drive_channel = V::load(p.drive_channel + c);
    input_channel = V::load(p.steps.input_channel + c);
    halves = p.steps.shift == 16;
    whole = V::count(p.steps.shift - 16), up = V::count(32 - p.steps.shift);
    for (int i = 0; i < 4; ++i) power[i] = V::sset1(p.abar_power[i]);
    abar_fraction = V::count(p.abar_fraction), abar_up = V::count(16 - p.abar_bits), to_table = V::count(1);
    abar_round = V::sset1(p.abar_fraction ? 1 << (p.abar_fraction - 1) : 0);
    abar_high = V::sset1(p.abar_high), abar_mask = V::sset1(-(1 << p.abar_fraction));
    const int point = 12 - p.bbar_bits;
    bbar_up = V::count(4);
    bbar_round = V::sset1(1 << (point - 1)), bbar_mask = V::sset1(-(1 << point));
    bbar_low = V::sset1(p.bbar_low * (1 << point)), bbar_high = V::sset1(p.bbar_high * (1 << point));
    state_round = V::sset1(1 << (p.point - 1)), state_mask = V::sset1(-(1 << p.point));
    state_low = V::sset1(p.state_low * (1 << p.point)), state_high = V::sset1(p.state_high * (1 << p.point));
  }

  __attribute__((always_inline)) Step make_step(int64_t s, T delta, T u) const {
    Step step;
    V::both2(V::mul(delta, delta_scale), V::mul(delta, drive_channel), step.d, step.w);
    step.d = V::smax(step.d, V::sset1(0));
    step.w = V::smin(V::smax(step.w, V::sset1(0)), V::sset1(kDeltaHigh));
    step.g = V::both(V::mul(V::mul(u, input_channel), V::set1(p.steps.input_step[s])));
    step.g = V::smin(V::smax(step.g, V::sset1(-kInputHigh)), V::sset1(kInputHigh));
    step.decay = V::sset1(p.decay[s]);
    step.lift = V::count(p.steps.lift[s] + 1);
    return step;
  }

  __attribute__((always_inline)) Step begin(const Step& s) const { return s; }

  // Computes Abar times `decay`.
  template <int U>
  __attribute__((always_inline)) void abar16(const Step& s, const uint16_t* a, S* out) const {
    S t[U];
    power16<V, U, kCodes == ScanCodes::kAligned>(s.d, a, power, halves, whole, up, t);
    if constexpr (abar_table(kCodes)) {
      VISQ_EACH t[j] = V::shr(t[j], to_table);
      pick<V, U>(p.abar_table, 0, t);
    } else if constexpr (kCodes == ScanCodes::kAligned) {
      VISQ_EACH t[j] = V::sand(V::sadd(t[j], abar_round), abar_mask);
    } else {
      VISQ_EACH t[j] = V::smin_u(V::shr(V::sadd(t[j], abar_round), abar_fraction), abar_high);
      VISQ_EACH t[j] = V::shl(t[j], abar_up);
    }
    VISQ_EACH out[j] = V::mulhi_u(t[j], s.decay);
  }

  // Computes Bbar: its code in the high bits, or the table's value.
  template <int U>
  __attribute__((always_inline)) void bbar16(const Step& s, const int16_t* beta, S* out) const {
    VISQ_EACH out[j] = V::mulhrs(s.w, V::spair(beta + j * 2));
    if constexpr (bbar_table(kCodes)) {
      pick<V, U>(p.bbar_table, -32768, out);
    } else {
      VISQ_EACH out[j] = V::sand(V::sadd(out[j], bbar_round), bbar_mask);
      VISQ_EACH out[j] = V::shl(V::smin(V::smax(out[j], bbar_low), bbar_high), bbar_up);
    }
  }

  template <int U>
  __attribute__((always_inline)) I advance(const Step& s, int64_t at, const int16_t* beta, const int16_t* C,
                                           int16_t* state, I sum) const {
    S kept[U], drive[U], q[U];
    abar16<U>(s, a + at, kept);
    bbar16<U>(s, beta, drive);
    VISQ_EACH q[j] = V::mulhi(V::shl(V::sload(state + j * 2 * V::W), s.lift), kept[j]);
    VISQ_EACH q[j] = V::sadd(V::sadd(q[j], V::mulhrs(drive[j], s.g)), state_round);
    VISQ_EACH q[j] = V::smin(V::smax(V::sand(q[j], state_mask), state_low), state_high);
    VISQ_EACH V::sstore(state + j * 2 * V::W, q[j]);
    VISQ_EACH sum = V::dot16(sum, q[j], V::spair(C + j * 2));
    return sum;
  }
};

template <class V>
void fixed_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FixedScan& p = op.fixed_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.abar_table.lut && p.bbar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanCodes::kBothTables>(p, c), p.steps, op, f, c);
    else if (p.abar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanCodes::kAbarTable>(p, c), p.steps, op, f, c);
    else if (p.bbar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanCodes::kBbarTable>(p, c), p.steps, op, f, c);
    else if (p.aligned)
      scan_channels<V>(FixedRecurrence<V, ScanCodes::kAligned>(p, c), p.steps, op, f, c);
    else
      scan_channels<V>(FixedRecurrence<V, ScanCodes::kUniform>(p, c), p.steps, op, f, c);
  }
}

}  // namespace visq::engine::VISQ_LEVEL
