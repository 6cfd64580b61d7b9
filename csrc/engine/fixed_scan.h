// The selective scan with codes of Abar and Bbar, visq.runtime.scan.fixed_scan. Every value fits its lanes as
// docs/integer-semantics.md shows; saturation happens where the definition has it.
#pragma once
#include "scan_loop.h"

namespace visq::engine {

// Limits of delta and of the input where they are multiplied, so that no sum leaves its lane.
constexpr int kDeltaHigh = 31743, kInputHigh = 16375;

// How the codes of Abar and Bbar are made. kAligned needs what FixedScan::aligned says and gives the same bits as
// kUniform in fewer instructions.
enum class ScanForm { kAligned, kUniform, kAbarTable, kBbarTable, kBothTables };

VISQ_SHARED constexpr bool abar_table(ScanForm form) {
  return form == ScanForm::kAbarTable || form == ScanForm::kBothTables;
}
VISQ_SHARED constexpr bool bbar_table(ScanForm form) {
  return form == ScanForm::kBbarTable || form == ScanForm::kBothTables;
}

// The table's values for U registers, in place; `first` is what its first entry is for.
template <class V, int U>
VISQ_INLINE void pick(const ScanTable& table, int first, typename Lanes<V>::S* x) {
  using K = Lanes<V>;
  if constexpr (K::kSearches) {
    if (table.steps <= kFewSteps) return K::template search32<U>(table.thresholds, table.values, x);
    if (table.steps <= kManySteps) return K::template search256<U>(table.thresholds, table.values, x);
  }
  VISQ_EACH x[j] = K::pick16(table.lut, K::sub(x[j], K::sset1(first)));
}

// States and y are in units of 2^-point.
template <class V, ScanForm kForm>
struct FixedRecurrence {
  using K = Lanes<V>;
  using T = typename V::T;
  using S = typename K::S;
  using I = typename K::I;
  using Count = typename K::Count;
  const FixedScan& p;
  T delta_scale, drive_channel, input_channel;
  bool halves;
  Count whole, join, abar_fraction, abar_up, bbar_up, to_table;
  S power[4], abar_round, abar_high, abar_mask, bbar_round, bbar_mask, bbar_low, bbar_high;
  S state_round, state_mask, state_low, state_high;

  struct Step {
    S d, w, g, decay;
    Count lift;
  };

  __attribute__((always_inline)) FixedRecurrence(const FixedScan& p, int64_t c) : p(p) {
    delta_scale = V::load(p.steps.delta_scale + c), drive_channel = V::load(p.drive_channel + c);
    input_channel = V::load(p.steps.input_channel + c);
    halves = p.steps.shift == 16;
    whole = K::count(p.steps.shift - 16), join = K::count(32 - p.steps.shift);
    for (int i = 0; i < 4; ++i) power[i] = K::sset1(p.abar_power[i]);
    abar_fraction = K::count(p.abar_fraction), abar_up = K::count(16 - p.abar_bits), to_table = K::count(1);
    abar_round = K::sset1(p.abar_fraction ? 1 << (p.abar_fraction - 1) : 0);
    abar_high = K::sset1(p.abar_high), abar_mask = K::sset1(-(1 << p.abar_fraction));
    const int point = 12 - p.bbar_bits;
    bbar_up = K::count(4);
    bbar_round = K::sset1(1 << (point - 1)), bbar_mask = K::sset1(-(1 << point));
    bbar_low = K::sset1(p.bbar_low * (1 << point)), bbar_high = K::sset1(p.bbar_high * (1 << point));
    state_round = K::sset1(1 << (p.point - 1)), state_mask = K::sset1(-(1 << p.point));
    state_low = K::sset1(p.state_low * (1 << p.point)), state_high = K::sset1(p.state_high * (1 << p.point));
  }

  __attribute__((always_inline)) Step make_step(int64_t s, T delta, T u) const {
    Step step;
    K::both(V::mul(delta, delta_scale), V::mul(delta, drive_channel), step.d, step.w);
    step.d = K::max(step.d, K::sset1(0));
    step.w = K::min(K::max(step.w, K::sset1(0)), K::sset1(kDeltaHigh));
    step.g = K::both(V::mul(V::mul(u, input_channel), V::set1(p.steps.input_step[s])));
    step.g = K::min(K::max(step.g, K::sset1(-kInputHigh)), K::sset1(kInputHigh));
    step.decay = K::sset1(p.decay[s]);
    step.lift = K::count(p.steps.lift[s] + 1);
    return step;
  }

  // Abar times `decay`.
  template <int U>
  __attribute__((always_inline)) void abar16(const Step& s, const uint16_t* a, S* out) const {
    S t[U];
    power16<V, U, kForm == ScanForm::kAligned>(s.d, a, power, halves, whole, join, t);
    if constexpr (abar_table(kForm)) {
      VISQ_EACH t[j] = K::shr(t[j], to_table);
      pick<V, U>(p.abar_table, 0, t);
    } else if constexpr (kForm == ScanForm::kAligned) {
      VISQ_EACH t[j] = K::and_(K::add(t[j], abar_round), abar_mask);
    } else {
      VISQ_EACH t[j] = K::min_u(K::shr(K::add(t[j], abar_round), abar_fraction), abar_high);
      VISQ_EACH t[j] = K::shl(t[j], abar_up);
    }
    VISQ_EACH out[j] = K::mulhi_u(t[j], s.decay);
  }

  // Bbar: its code in the high bits, or the table's value.
  template <int U>
  __attribute__((always_inline)) void bbar16(const Step& s, const int16_t* beta, S* out) const {
    VISQ_EACH out[j] = K::mulhrs(s.w, K::spair(beta + j * 2));
    if constexpr (bbar_table(kForm)) {
      pick<V, U>(p.bbar_table, -32768, out);
    } else {
      VISQ_EACH out[j] = K::and_(K::add(out[j], bbar_round), bbar_mask);
      VISQ_EACH out[j] = K::shl(K::min(K::max(out[j], bbar_low), bbar_high), bbar_up);
    }
  }

  template <int U>
  __attribute__((always_inline)) I advance(const Step& s, const uint16_t* a, const int16_t* beta, const int16_t* C,
                                           int16_t* state, I sum) const {
    S kept[U], drive[U], q[U];
    abar16<U>(s, a, kept);
    bbar16<U>(s, beta, drive);
    VISQ_EACH q[j] = K::mulhi(K::shl(K::sload(state + j * 2 * V::W), s.lift), kept[j]);
    VISQ_EACH q[j] = K::add(K::add(q[j], K::mulhrs(drive[j], s.g)), state_round);
    VISQ_EACH q[j] = K::min(K::max(K::and_(q[j], state_mask), state_low), state_high);
    VISQ_EACH K::sstore(state + j * 2 * V::W, q[j]);
    VISQ_EACH sum = K::dot16(sum, q[j], K::spair(C + j * 2));
    return sum;
  }
};

template <class V>
void fixed_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FixedScan& p = op.fixed_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.abar_table.lut && p.bbar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanForm::kBothTables>(p, c), p.steps, op, f, c);
    else if (p.abar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanForm::kAbarTable>(p, c), p.steps, op, f, c);
    else if (p.bbar_table.lut)
      scan_channels<V>(FixedRecurrence<V, ScanForm::kBbarTable>(p, c), p.steps, op, f, c);
    else if (p.aligned)
      scan_channels<V>(FixedRecurrence<V, ScanForm::kAligned>(p, c), p.steps, op, f, c);
    else
      scan_channels<V>(FixedRecurrence<V, ScanForm::kUniform>(p, c), p.steps, op, f, c);
  }
}

}  // namespace visq::engine
