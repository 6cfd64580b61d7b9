// The selective scan in fixed point, visq.runtime.scan.fixed_scan: 16-bit lanes, two states of each of W channels in a
// register, so that one multiply-add with the pair (C[2n], C[2n+1]) sums y over states in 32 bits. Every value fits its
// lanes as docs/integer-semantics.md shows; saturation happens where the definition has it.
#pragma once
#include "encode.h"

namespace visq::engine {

// A step adds up in units of 2^-kPoint of a code of the state.
constexpr int kPoint = 19;

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
    const float zero = C.codes->zero_token[t];
    for (int64_t n = 0; n < p.N; ++n) {
      const float code = n < C.width ? static_cast<float>(codes[n]) - (C.codes->zero ? C.codes->zero[0] : zero) : 0.0f;
      room.C[s * p.N + n] = static_cast<int16_t>(code);
    }
    for (int64_t n = 0; n < p.N; n += V::W) {
      const auto x = B.codes ? decode<V>(*B.codes, t, n, f.row<uint8_t>(B, t) + n) : V::load(f.row<float>(B, t) + n);
      V::store(values, to_short<V>(V::mul(x, V::set1(p.beta_scale))));
      for (int64_t i = 0; i < V::W && n + i < p.N; ++i)
        room.beta[s * p.N + n + i] = n + i < B.width ? static_cast<int16_t>(values[i]) : 0;
    }
  }
}

// Numbers of the recurrence in every lane.
template <class V>
struct ScanConstants {
  using K = Lanes<V>;
  using S = typename K::S;
  using Count = typename K::Count;
  Count whole, join, rest, abar_fraction, abar_up, bbar_fraction, bbar_up;
  S fraction, c1, c2, c3, c4, one;
  S abar_inverse, abar_round, abar_high, bbar_round, bbar_low, bbar_high, state_low, state_high, lut_base;

  explicit ScanConstants(const FixedScan& p) {
    whole = K::count(p.shift - 16), join = K::count(31 - p.shift), rest = K::count(p.shift - 15);
    abar_fraction = K::count(p.abar_fraction), abar_up = K::count(15 - p.abar_bits);
    bbar_fraction = K::count(p.bbar_fraction), bbar_up = K::count(16 - p.bbar_bits);
    fraction = one = K::sset1(32767);
    c1 = K::sset1(22713), c2 = K::sset1(7865), c3 = K::sset1(1760), c4 = K::sset1(224);
    abar_inverse = K::sset1(p.abar_inverse), abar_round = K::sset1(p.abar_fraction ? 1 << (p.abar_fraction - 1) : 0);
    abar_high = K::sset1(p.abar_high);
    bbar_round = K::sset1(p.bbar_fraction ? 1 << (p.bbar_fraction - 1) : 0);
    bbar_low = K::sset1(p.bbar_low), bbar_high = K::sset1(p.bbar_high);
    state_low = K::sset1(p.state_low), state_high = K::sset1(p.state_high);
    lut_base = K::sset1(-32768);
  }
};

// Abar times `decay`.
template <class V, bool kTable>
VISQ_INLINE typename Lanes<V>::S abar16(const FixedScan& p, const ScanConstants<V>& k, typename Lanes<V>::S d,
                                        typename Lanes<V>::S a, typename Lanes<V>::S decay) {
  using K = Lanes<V>;
  const auto high = K::mulhi_u(d, a), low = K::mullo(d, a);
  const auto f = K::and_(K::join(high, low, k.join, k.rest), k.fraction);
  auto t = K::sub(k.c3, K::mulhrs(f, k.c4));
  t = K::sub(k.c2, K::mulhrs(f, t));
  t = K::sub(k.c1, K::mulhrs(f, t));
  const auto value = K::shr_each(K::sub(k.one, K::mulhrs(f, t)), K::shr(high, k.whole));
  if (kTable) return K::mulhrs(K::pick16(p.abar_lut, value), decay);
  const auto code = K::shr(K::add(K::mulhrs(value, k.abar_inverse), k.abar_round), k.abar_fraction);
  return K::mulhrs(K::shl(K::min_u(code, k.abar_high), k.abar_up), decay);
}

template <class V, bool kTable>
VISQ_INLINE typename Lanes<V>::S bbar16(const FixedScan& p, const ScanConstants<V>& k, typename Lanes<V>::S d,
                                        typename Lanes<V>::S beta) {
  using K = Lanes<V>;
  const auto value = K::mulhrs(d, beta);
  if (kTable) return K::pick16(p.bbar_lut, K::add(value, k.lut_base));
  const auto code = K::sra(K::adds(value, k.bbar_round), k.bbar_fraction);
  return K::shl(K::min(K::max(code, k.bbar_low), k.bbar_high), k.bbar_up);
}

// W channels from c on, all steps.
template <class V, bool kAbarTable, bool kBbarTable>
VISQ_INLINE void fixed_scan_channels(const Operation& op, const Frame& f, int64_t c) {
  using K = Lanes<V>;
  const FixedScan& p = op.fixed_scan;
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const ScanRoom room = scan_room(p, f.scratch);
  const int64_t pairs = p.N / 2;
  const ScanConstants<V> k(p);
  const uint16_t* a = p.a + c * p.N;
  const auto input_channel = V::load(p.input_channel + c), y_channel = V::load(p.y_channel + c);
  const auto half = K::iset1(1 << (kPoint - 1));
  float* out = reinterpret_cast<float*>(f.arena + op.y_offset) + c;
  for (int64_t i = 0; i < pairs * 2 * V::W; ++i) room.state[i] = 0;
  for (int64_t s = 0; s < p.L; ++s) {
    const int64_t t = scan_row(p.L, p.reverse, s);
    const auto delta_t = delta.codes ? decode<V>(*delta.codes, t, c, f.row<uint8_t>(delta, t) + c)
                                     : V::load(f.row<float>(delta, t) + c);
    const auto u_t = u.codes ? decode<V>(*u.codes, t, c, f.row<uint8_t>(u, t) + c) : V::load(f.row<float>(u, t) + c);
    const auto d = K::both(V::max(to_short<V>(V::mul(delta_t, V::set1(p.delta_scale))), V::zero()));
    const auto g = K::both(to_short<V>(V::mul(V::mul(u_t, input_channel), V::set1(p.input_step[s]))));
    const auto decay = K::sset1(p.decay[s]);
    const auto lift = K::count(p.lift[s]);
    auto sum = K::izero();
    for (int64_t n = 0; n < pairs; ++n) {
      int16_t* state = room.state + n * 2 * V::W;
      const auto kept = abar16<V, kAbarTable>(p, k, d, K::sload(a + n * 2 * V::W), decay);
      const auto drive = bbar16<V, kBbarTable>(p, k, d, K::spair(room.beta + s * p.N + 2 * n));
      // q Abar + Bbar u in 32 bits: one multiply-add of the pairs (q, Bbar) and (Abar, u) for each state.
      const auto lifted = K::shl(K::sload(state), lift);
      const auto first = K::dot16(half, K::zip_low(lifted, drive), K::zip_low(kept, g));
      const auto second = K::dot16(half, K::zip_high(lifted, drive), K::zip_high(kept, g));
      const auto next = K::template narrow<kPoint>(first, second);
      const auto q = K::min(K::max(next, k.state_low), k.state_high);
      K::sstore(state, q);
      sum = K::dot16(sum, q, K::spair(room.C + s * p.N + 2 * n));
    }
    const auto y = V::mul(V::mul(K::to_float(sum), y_channel), V::set1(p.y_step[s]));
    V::store(out + t * p.C, y);
  }
}

template <class V>
void fixed_scan_block(const Operation& op, const Frame& f, int64_t block) {
  const FixedScan& p = op.fixed_scan;
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) {
    if (p.abar_lut && p.bbar_lut)
      fixed_scan_channels<V, true, true>(op, f, c);
    else if (p.abar_lut)
      fixed_scan_channels<V, true, false>(op, f, c);
    else if (p.bbar_lut)
      fixed_scan_channels<V, false, true>(op, f, c);
    else
      fixed_scan_channels<V, false, false>(op, f, c);
  }
}

}  // namespace visq::engine
