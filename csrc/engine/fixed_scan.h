// The selective scan in fixed point, visq.runtime.scan.fixed_scan: 16-bit lanes, two states of each of W channels in a
// register, so that one multiply-add with the pair (C[2n], C[2n+1]) sums y over states in 32 bits. Every value fits its
// lanes as docs/integer-semantics.md shows; saturation happens where the definition has it.
#pragma once
#include "encode.h"

namespace visq::engine {

constexpr int kLockstep = 4;  // registers advanced together

// Limits of delta and of the input where they are multiplied, so that no sum leaves its lane.
constexpr int kDeltaHigh = 31743, kInputHigh = 16375;

// Scratch of a scan, one for each thread: beta and C of all steps, [L][N] shorts each, then the state of W channels.
struct ScanRoom {
  int16_t *beta, *C, *state;
};

VISQ_INLINE ScanRoom scan_room(const FixedScan& p, float* scratch) {
  int16_t* beta = reinterpret_cast<int16_t*>(scratch);
  const int64_t each = padded(p.L * p.N, 32);
  return {beta, beta + each, beta + 2 * each};
}

VISQ_INLINE int64_t scan_row(int64_t L, bool reverse, int64_t s) { return reverse ? L - 1 - s : s; }

template <class V>
VISQ_INLINE typename V::T to_short(typename V::T x) {
  return clamp<V>(V::rint(x), V::set1(-32768.0f), V::set1(32767.0f));
}

// beta and C in scan order; what pads N to an even number is zero.
template <class V>
void prepare_fixed_scan(const Operation& op, const Frame& f) {
  const FixedScan& p = op.fixed_scan;
  const Tensor &B = f.tensors[op.inputs[2]], &C = f.tensors[op.inputs[3]];
  const ScanRoom room = scan_room(p, f.scratch);
  alignas(64) float values[V::W];
  for (int64_t s = 0; s < p.L; ++s) {
    const int64_t t = scan_row(p.L, p.reverse, s);
    const uint8_t* codes = f.row<uint8_t>(C, t);
    const int zero = static_cast<int>(C.codes->zero_token[t]);
    for (int64_t n = 0; n < C.width; ++n) room.C[s * p.N + n] = static_cast<int16_t>(codes[n] - zero);
    if (p.N > C.width) room.C[s * p.N + C.width] = 0;
    for (int64_t n = 0; n < p.N; n += V::W) {
      const auto x = B.codes ? decode<V>(*B.codes, t, n, f.row<uint8_t>(B, t) + n) : V::load(f.row<float>(B, t) + n);
      V::store(values, to_short<V>(V::mul(x, V::set1(p.beta_scale))));
      for (int64_t i = 0; i < V::W && n + i < B.width; ++i)
        room.beta[s * p.N + n + i] = static_cast<int16_t>(values[i]);
    }
    if (p.N > B.width) room.beta[s * p.N + B.width] = 0;
  }
}

// Numbers of the recurrence in every lane.
template <class V>
struct ScanConstants {
  using K = Lanes<V>;
  using S = typename K::S;
  using Count = typename K::Count;
  bool halves;
  Count whole, join, abar_fraction, abar_up, bbar_up, to_table;
  S k0, k1, k2, k3, abar_round, abar_high, abar_mask, bbar_round, bbar_mask, bbar_low, bbar_high, lut_base;
  S state_round, state_mask, state_low, state_high;

  explicit ScanConstants(const FixedScan& p) {
    halves = p.shift == 16;
    whole = K::count(p.shift - 16), join = K::count(32 - p.shift);
    k0 = K::sset1(p.abar_power[0]), k1 = K::sset1(p.abar_power[1]);
    k2 = K::sset1(p.abar_power[2]), k3 = K::sset1(p.abar_power[3]);
    abar_fraction = K::count(p.abar_fraction), abar_up = K::count(16 - p.abar_bits), to_table = K::count(1);
    abar_round = K::sset1(p.abar_fraction ? 1 << (p.abar_fraction - 1) : 0);
    abar_high = K::sset1(p.abar_high), abar_mask = K::sset1(-(1 << p.abar_fraction));
    const int point = 12 - p.bbar_bits;
    bbar_up = K::count(4);
    bbar_round = K::sset1(1 << (point - 1)), bbar_mask = K::sset1(-(1 << point));
    bbar_low = K::sset1(p.bbar_low * (1 << point)), bbar_high = K::sset1(p.bbar_high * (1 << point));
    lut_base = K::sset1(-32768);
    state_round = K::sset1(1 << (p.point - 1)), state_mask = K::sset1(-(1 << p.point));
    state_low = K::sset1(p.state_low * (1 << p.point)), state_high = K::sset1(p.state_high * (1 << p.point));
  }
};

// Several registers in lockstep: one alone is a long chain of dependent instructions.
#define VISQ_EACH _Pragma("GCC unroll 4") for (int j = 0; j < U; ++j)

// How the codes of Abar and Bbar are made. kAligned needs what FixedScan::aligned says and gives the same bits as
// kUniform in fewer instructions.
enum class ScanForm { kAligned, kUniform, kAbarTable, kBbarTable, kBothTables };

VISQ_SHARED constexpr bool abar_table(ScanForm form) {
  return form == ScanForm::kAbarTable || form == ScanForm::kBothTables;
}
VISQ_SHARED constexpr bool bbar_table(ScanForm form) {
  return form == ScanForm::kBbarTable || form == ScanForm::kBothTables;
}

// The table's value; `at` is x counted from the table's first entry.
template <class V>
VISQ_INLINE typename Lanes<V>::S pick(const ScanTable& table, typename Lanes<V>::S x, typename Lanes<V>::S at) {
  if constexpr (Lanes<V>::kSearches) {
    if (table.thresholds) return Lanes<V>::search(table.thresholds, table.values, x);
  }
  return Lanes<V>::pick16(table.lut, at);
}

// Abar times `decay`, of 2 U states.
template <class V, int U, ScanForm kForm>
VISQ_INLINE void abar16(const FixedScan& p, const ScanConstants<V>& k, typename Lanes<V>::S d, const uint16_t* a,
                        typename Lanes<V>::S decay, typename Lanes<V>::S* out) {
  using K = Lanes<V>;
  typename K::S whole[U], f[U], t[U];
  VISQ_EACH whole[j] = K::mulhi_u(d, K::sload(a + j * 2 * V::W));
  VISQ_EACH f[j] = K::mullo(d, K::sload(a + j * 2 * V::W));
  if (kForm != ScanForm::kAligned && !k.halves) {
    VISQ_EACH f[j] = K::join(whole[j], f[j], k.join, k.whole);
    VISQ_EACH whole[j] = K::shr(whole[j], k.whole);
  }
  VISQ_EACH t[j] = K::sub(k.k2, K::mulhi_u(f[j], k.k3));
  VISQ_EACH t[j] = K::sub(k.k1, K::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = K::sub(k.k0, K::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = K::shr_each(t[j], whole[j]);
  if constexpr (abar_table(kForm)) {
    VISQ_EACH t[j] = K::shr(t[j], k.to_table);
    VISQ_EACH t[j] = pick<V>(p.abar_table, t[j], t[j]);
  } else if constexpr (kForm == ScanForm::kAligned) {
    VISQ_EACH t[j] = K::and_(K::add(t[j], k.abar_round), k.abar_mask);
  } else {
    VISQ_EACH t[j] = K::min_u(K::shr(K::add(t[j], k.abar_round), k.abar_fraction), k.abar_high);
    VISQ_EACH t[j] = K::shl(t[j], k.abar_up);
  }
  VISQ_EACH out[j] = K::mulhi_u(t[j], decay);
}

// Bbar: its code in the high bits, or the table's value.
template <class V, int U, ScanForm kForm>
VISQ_INLINE void bbar16(const FixedScan& p, const ScanConstants<V>& k, typename Lanes<V>::S w, const int16_t* beta,
                        typename Lanes<V>::S* out) {
  using K = Lanes<V>;
  VISQ_EACH out[j] = K::mulhrs(w, K::spair(beta + j * 2));
  if constexpr (bbar_table(kForm)) {
    VISQ_EACH out[j] = pick<V>(p.bbar_table, out[j], K::add(out[j], k.lut_base));
  } else {
    VISQ_EACH out[j] = K::and_(K::add(out[j], k.bbar_round), k.bbar_mask);
    VISQ_EACH out[j] = K::shl(K::min(K::max(out[j], k.bbar_low), k.bbar_high), k.bbar_up);
  }
}

// What is common to the states of a step.
template <class V>
struct ScanStep {
  typename Lanes<V>::S d, w, g, decay;
  typename Lanes<V>::Count lift;
};

// One step of 2 U states: their share of y. States and y are in units of 2^-point.
template <class V, int U, ScanForm kForm>
VISQ_INLINE typename Lanes<V>::I advance(const FixedScan& p, const ScanConstants<V>& k, const ScanStep<V>& s,
                                         const uint16_t* a, const int16_t* beta, const int16_t* C, int16_t* state,
                                         typename Lanes<V>::I sum) {
  using K = Lanes<V>;
  typename K::S kept[U], drive[U], q[U];
  abar16<V, U, kForm>(p, k, s.d, a, s.decay, kept);
  bbar16<V, U, kForm>(p, k, s.w, beta, drive);
  VISQ_EACH q[j] = K::mulhi(K::shl(K::sload(state + j * 2 * V::W), s.lift), kept[j]);
  VISQ_EACH q[j] = K::add(K::add(q[j], K::mulhrs(drive[j], s.g)), k.state_round);
  VISQ_EACH q[j] = K::min(K::max(K::and_(q[j], k.state_mask), k.state_low), k.state_high);
  VISQ_EACH K::sstore(state + j * 2 * V::W, q[j]);
  VISQ_EACH sum = K::dot16(sum, q[j], K::spair(C + j * 2));
  return sum;
}

#undef VISQ_EACH

// W channels from c on, all steps.
template <class V, ScanForm kForm>
VISQ_INLINE void fixed_scan_channels(const Operation& op, const Frame& f, int64_t c) {
  using K = Lanes<V>;
  const FixedScan& p = op.fixed_scan;
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const ScanRoom room = scan_room(p, f.scratch);
  const int64_t L = p.L, N = p.N, width = 2 * V::W;
  const ScanConstants<V> k(p);
  const uint16_t* a = p.a + c * N;
  const auto delta_scale = V::load(p.delta_scale + c), drive_channel = V::load(p.drive_channel + c);
  const auto input_channel = V::load(p.input_channel + c);
  const auto y_channel = V::load(p.y_channel + c);
  float* out = reinterpret_cast<float*>(f.arena + op.y_offset) + c;
  for (int64_t i = 0; i < N * V::W; ++i) room.state[i] = 0;
  const auto make_step = [&](int64_t s) __attribute__((always_inline)) {
    const int64_t t = scan_row(L, p.reverse, s);
    // float32 where the simulation runs this scan alone (Engine::run_alone, tests/ops/test_fixed_scan.py).
    const auto delta_t = delta.codes ? decode<V>(*delta.codes, t, c, f.row<uint8_t>(delta, t) + c)
                                     : V::load(f.row<float>(delta, t) + c);
    const auto u_t = u.codes ? decode<V>(*u.codes, t, c, f.row<uint8_t>(u, t) + c) : V::load(f.row<float>(u, t) + c);
    ScanStep<V> step;
    K::both(V::mul(delta_t, delta_scale), V::mul(delta_t, drive_channel), step.d, step.w);
    step.d = K::max(step.d, K::sset1(0));
    step.w = K::min(K::max(step.w, K::sset1(0)), K::sset1(kDeltaHigh));
    step.g = K::both(V::mul(V::mul(u_t, input_channel), V::set1(p.input_step[s])));
    step.g = K::min(K::max(step.g, K::sset1(-kInputHigh)), K::sset1(kInputHigh));
    step.decay = K::sset1(p.decay[s]);
    step.lift = K::count(p.lift[s] + 1);
    return step;
  };
  ScanStep<V> next = make_step(0);
  for (int64_t s = 0; s < L; ++s) {
    const ScanStep<V> step = next;
    next = make_step(s + 1 < L ? s + 1 : s);  // early: what it waits for passes while the states are advanced
    const int16_t *beta = room.beta + s * N, *C = room.C + s * N;
    auto sum = K::izero();
    int64_t n = 0;  // pairs of states
    for (; n + kLockstep <= N / 2; n += kLockstep)
      sum = advance<V, kLockstep, kForm>(p, k, step, a + n * width, beta + 2 * n, C + 2 * n,
                                                     room.state + n * width, sum);
    for (; n < N / 2; ++n)
      sum = advance<V, 1, kForm>(p, k, step, a + n * width, beta + 2 * n, C + 2 * n,
                                             room.state + n * width, sum);
    V::store(out + scan_row(L, p.reverse, s) * p.C, V::mul(V::mul(K::to_float(sum), y_channel), V::set1(p.y_step[s])));
  }
}

template <class V>
void fixed_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FixedScan& p = op.fixed_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.abar_table.lut && p.bbar_table.lut)
      fixed_scan_channels<V, ScanForm::kBothTables>(op, f, c);
    else if (p.abar_table.lut)
      fixed_scan_channels<V, ScanForm::kAbarTable>(op, f, c);
    else if (p.bbar_table.lut)
      fixed_scan_channels<V, ScanForm::kBbarTable>(op, f, c);
    else if (p.aligned)
      fixed_scan_channels<V, ScanForm::kAligned>(op, f, c);
    else
      fixed_scan_channels<V, ScanForm::kUniform>(op, f, c);
  }
}

}  // namespace visq::engine
