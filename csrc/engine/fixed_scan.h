// The selective scan in fixed point, visq.runtime.scan.fixed_scan: 16-bit lanes, two states of each of W channels in a
// register, so that one multiply-add with the pair (C[2n], C[2n+1]) sums y over states in 32 bits. Every value fits its
// lanes as docs/integer-semantics.md shows; saturation happens where the definition has it.
#pragma once
#include "encode.h"

namespace visq::engine {

// A step adds up in units of 2^-kPoint of a code of the state.
constexpr int kPoint = 19;
constexpr int kLockstep = 4;  // registers advanced together

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
  Count whole, join, rest, abar_fraction, abar_up, bbar_fraction, bbar_up;
  S c1, c2, c3, c4, one;
  S abar_inverse, abar_round, abar_high, bbar_round, bbar_low, bbar_high, state_low, state_high, lut_base;
  // Of the common form, see FixedScan::common: codes where they lie in a register, not shifted down and up again.
  S abar_mask, bbar_mask, bbar_least, bbar_most, state_mask;

  explicit ScanConstants(const FixedScan& p) {
    whole = K::count(p.shift - 16), join = K::count(31 - p.shift), rest = K::count(p.shift - 15);
    abar_fraction = K::count(p.abar_fraction), abar_up = K::count(15 - p.abar_bits);
    bbar_fraction = K::count(p.bbar_fraction), bbar_up = K::count(16 - p.bbar_bits);
    one = K::sset1(32767);
    c1 = K::sset1(22713), c2 = K::sset1(7865), c3 = K::sset1(1760), c4 = K::sset1(224);
    abar_inverse = K::sset1(p.abar_inverse), abar_round = K::sset1(p.abar_fraction ? 1 << (p.abar_fraction - 1) : 0);
    abar_high = K::sset1(p.abar_high);
    bbar_round = K::sset1(p.bbar_fraction ? 1 << (p.bbar_fraction - 1) : 0);
    bbar_low = K::sset1(p.bbar_low), bbar_high = K::sset1(p.bbar_high);
    state_low = K::sset1(p.state_low), state_high = K::sset1(p.state_high);
    lut_base = K::sset1(-32768);
    abar_mask = K::sset1(-(1 << p.abar_fraction)), bbar_mask = K::sset1(-(1 << p.bbar_fraction));
    bbar_least = K::sset1(p.bbar_low * (1 << p.bbar_fraction));
    bbar_most = K::sset1((p.bbar_high + 1) * (1 << p.bbar_fraction) - 1);
    state_mask = K::sset1(-(1 << p.state_up));
  }
};

// Several registers in lockstep: one alone is a long chain of dependent instructions.
#define VISQ_EACH _Pragma("GCC unroll 4") for (int j = 0; j < U; ++j)

// How the codes of Abar, Bbar and the state are made. kCommon needs what FixedScan::common says and gives the same bits
// as kUniform in fewer instructions.
enum class ScanForm { kCommon, kUniform, kAbarTable, kBbarTable, kBothTables };

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
  typename K::S high[U], f[U], t[U];
  VISQ_EACH high[j] = K::mulhi_u(d, K::sload(a + j * 2 * V::W));
  VISQ_EACH f[j] = K::mullo(d, K::sload(a + j * 2 * V::W));
  VISQ_EACH f[j] = K::and_(K::join(high[j], f[j], k.join, k.rest), k.one);
  VISQ_EACH t[j] = K::sub(k.c3, K::mulhrs(f[j], k.c4));
  VISQ_EACH t[j] = K::sub(k.c2, K::mulhrs(f[j], t[j]));
  VISQ_EACH t[j] = K::sub(k.c1, K::mulhrs(f[j], t[j]));
  VISQ_EACH t[j] = K::sub(k.one, K::mulhrs(f[j], t[j]));
  VISQ_EACH t[j] = K::shr_each(t[j], K::shr(high[j], k.whole));
  if constexpr (abar_table(kForm)) {
    VISQ_EACH out[j] = K::mulhrs(pick<V>(p.abar_table, t[j], t[j]), decay);
    return;
  }
  VISQ_EACH t[j] = K::add(K::mulhrs(t[j], k.abar_inverse), k.abar_round);
  if constexpr (kForm == ScanForm::kCommon) {
    VISQ_EACH out[j] = K::mulhrs(K::and_(t[j], k.abar_mask), decay);
  } else {
    VISQ_EACH t[j] = K::min_u(K::shr(t[j], k.abar_fraction), k.abar_high);
    VISQ_EACH out[j] = K::mulhrs(K::shl(t[j], k.abar_up), decay);
  }
}

// Bbar, in the common form as it lies: shifted right by 4 bits that are zero.
template <class V, int U, ScanForm kForm>
VISQ_INLINE void bbar16(const FixedScan& p, const ScanConstants<V>& k, typename Lanes<V>::S w, const int16_t* beta,
                        typename Lanes<V>::S* out) {
  using K = Lanes<V>;
  VISQ_EACH out[j] = K::mulhrs(w, K::spair(beta + j * 2));
  if constexpr (bbar_table(kForm)) {
    VISQ_EACH out[j] = pick<V>(p.bbar_table, out[j], K::add(out[j], k.lut_base));
    return;
  }
  VISQ_EACH out[j] = K::adds(out[j], k.bbar_round);
  if constexpr (kForm == ScanForm::kCommon) {
    VISQ_EACH out[j] = K::and_(K::min(K::max(out[j], k.bbar_least), k.bbar_most), k.bbar_mask);
  } else {
    VISQ_EACH out[j] = K::sra(out[j], k.bbar_fraction);
    VISQ_EACH out[j] = K::shl(K::min(K::max(out[j], k.bbar_low), k.bbar_high), k.bbar_up);
  }
}

// What is common to the states of a step.
template <class V>
struct ScanStep {
  typename Lanes<V>::S d, w, g, decay;
  typename Lanes<V>::Count lift;
};

// One step of 2 U states: their share of y. In the common form states lie in the high bits of a lane; so does y.
template <class V, int U, ScanForm kForm, int kStateBits>
VISQ_INLINE typename Lanes<V>::I advance(const FixedScan& p, const ScanConstants<V>& k, const ScanStep<V>& s,
                                         const uint16_t* a, const int16_t* beta, const int16_t* C, int16_t* state,
                                         typename Lanes<V>::I sum) {
  using K = Lanes<V>;
  constexpr bool kIsCommon = kForm == ScanForm::kCommon;
  constexpr int kBits = kIsCommon ? kPoint - 4 : kPoint;
  typename K::S kept[U], drive[U], q[U];
  abar16<V, U, kForm>(p, k, s.d, a, s.decay, kept);
  bbar16<V, U, kForm>(p, k, s.w, beta, drive);
  const auto half = K::iset1(1 << (kBits - 1));
  VISQ_EACH q[j] = K::sload(state + j * 2 * V::W);
  VISQ_EACH q[j] = kIsCommon ? K::sra(q[j], s.lift) : K::shl(q[j], s.lift);
  // q Abar + Bbar u in 32 bits: one multiply-add of the pairs (q, Bbar) and (Abar, u) for each state.
  typename K::I first[U], second[U];
  VISQ_EACH first[j] = K::dot16(half, K::zip_low(q[j], drive[j]), K::zip_low(kept[j], s.g));
  VISQ_EACH second[j] = K::dot16(half, K::zip_high(q[j], drive[j]), K::zip_high(kept[j], s.g));
  if constexpr (kIsCommon) {
    // Saturation to 16 bits is that of the codes.
    VISQ_EACH q[j] = K::and_(K::template narrow<kBits - 16 + kStateBits>(first[j], second[j]), k.state_mask);
  } else {
    VISQ_EACH q[j] = K::template narrow<kBits>(first[j], second[j]);
    VISQ_EACH q[j] = K::min(K::max(q[j], k.state_low), k.state_high);
  }
  VISQ_EACH K::sstore(state + j * 2 * V::W, q[j]);
  VISQ_EACH sum = K::dot16(sum, q[j], K::spair(C + j * 2));
  return sum;
}

#undef VISQ_EACH

// W channels from c on, all steps.
template <class V, ScanForm kForm, int kStateBits>
VISQ_INLINE void fixed_scan_channels(const Operation& op, const Frame& f, int64_t c) {
  using K = Lanes<V>;
  constexpr bool kIsCommon = kForm == ScanForm::kCommon;
  const FixedScan& p = op.fixed_scan;
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const ScanRoom room = scan_room(p, f.scratch);
  const int64_t L = p.L, N = p.N, width = 2 * V::W;
  const ScanConstants<V> k(p);
  const uint16_t* a = p.a + c * N;
  const auto drive_channel = V::load(p.drive_channel + c), input_channel = V::load(p.input_channel + c);
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
    step.d = K::max(K::both(V::mul(delta_t, V::set1(p.delta_scale))), K::sset1(0));
    step.w = K::max(K::both(V::mul(delta_t, drive_channel)), K::sset1(0));
    step.g = K::both(V::mul(V::mul(u_t, input_channel), V::set1(p.input_step[s])));
    step.decay = K::sset1(p.decay[s]);
    // The common form has 4 bits less before the sum, and its codes are `state_up` bits too high.
    step.lift = K::count(kIsCommon ? p.state_up + 4 - p.lift[s] : p.lift[s]);
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
      sum = advance<V, kLockstep, kForm, kStateBits>(p, k, step, a + n * width, beta + 2 * n, C + 2 * n,
                                                     room.state + n * width, sum);
    for (; n < N / 2; ++n)
      sum = advance<V, 1, kForm, kStateBits>(p, k, step, a + n * width, beta + 2 * n, C + 2 * n,
                                             room.state + n * width, sum);
    if (kIsCommon) sum = K::template isra<16 - kStateBits>(sum);
    V::store(out + scan_row(L, p.reverse, s) * p.C, V::mul(V::mul(K::to_float(sum), y_channel), V::set1(p.y_step[s])));
  }
}

template <class V>
void fixed_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FixedScan& p = op.fixed_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.abar_table.lut && p.bbar_table.lut)
      fixed_scan_channels<V, ScanForm::kBothTables, 0>(op, f, c);
    else if (p.abar_table.lut)
      fixed_scan_channels<V, ScanForm::kAbarTable, 0>(op, f, c);
    else if (p.bbar_table.lut)
      fixed_scan_channels<V, ScanForm::kBbarTable, 0>(op, f, c);
    else if (p.common && p.state_up == 8)
      fixed_scan_channels<V, ScanForm::kCommon, 8>(op, f, c);
    else if (p.common && p.state_up == 12)
      fixed_scan_channels<V, ScanForm::kCommon, 4>(op, f, c);
    else
      fixed_scan_channels<V, ScanForm::kUniform, 0>(op, f, c);
  }
}

}  // namespace visq::engine
