// What the scans in fixed point share: 16-bit lanes, two states of each of W channels in a register, so that one
// multiply-add with the pair (C[2n], C[2n+1]) sums y over states in 32 bits; and the loop over the steps of W channels.
#pragma once
#include "encode.h"

namespace visq::engine {

constexpr int kLockstep = 4;  // registers advanced together

// Several registers in lockstep: one alone is a long chain of dependent instructions.
#define VISQ_EACH _Pragma("GCC unroll 4") for (int j = 0; j < U; ++j)

// Scratch of a scan, one for each thread: beta and C of all steps, [L][N] shorts each, then the state of W channels.
struct ScanRoom {
  int16_t *beta, *C, *state;
};

VISQ_INLINE ScanRoom scan_room(const ScanSteps& p, float* scratch) {
  int16_t* beta = reinterpret_cast<int16_t*>(scratch);
  const int64_t each = padded(p.L * p.N + kChannels, 32);  // whole vectors are written
  return {beta, beta + each, beta + 2 * each};
}

VISQ_INLINE int64_t scan_row(int64_t L, bool reverse, int64_t s) { return reverse ? L - 1 - s : s; }

// beta and C in scan order; what pads N to an even number is zero. Of what is written, the next
// step overwrites what goes beyond this one.
template <class V>
void prepare_steps(const ScanSteps& p, const Operation& op, const Frame& f) {
  using K = Lanes<V>;
  const Tensor &B = f.tensors[op.inputs[2]], &C = f.tensors[op.inputs[3]];
  const ScanRoom room = scan_room(p, f.scratch);
  for (int64_t s = 0; s < p.L; ++s) {
    const int64_t t = scan_row(p.L, p.reverse, s);
    int16_t *beta = room.beta + s * p.N, *c = room.C + s * p.N;
    const auto scale = V::set1(p.beta_scale[s]), zero = V::set1(C.codes->zero_token[t]);
    for (int64_t n = 0; n < p.N; n += V::W) {
      const auto x = B.codes ? decode<V>(*B.codes, t, n, f.row<uint8_t>(B, t) + n) : V::load(f.row<float>(B, t) + n);
      K::store_shorts(beta + n, V::mul(x, scale));
      K::store_shorts(c + n, V::sub(K::bytes(f.row<uint8_t>(C, t) + n), zero));
    }
    if (p.N > B.width) beta[B.width] = c[B.width] = 0;
  }
}

// y of W channels from c on, as floats or as codes without a table.
template <class V>
VISQ_INLINE void store_y(const Operation& op, const Frame& f, int64_t row, int64_t c, typename V::T y) {
  const Tensor& t = f.tensors[op.y];
  if (!t.codes) return V::store(f.row<float>(t, row) + c, y);
  Uniform<V>(*t.codes, row).template encode<1>(c, &y, f.row<uint8_t>(t, row) + c);
}

// W channels from c on, all steps. `recurrence` has
//   Step                                               what is common to the states of a step
//   make_step(s, delta, u)                             of W channels
//   advance<U>(step, a, beta, C, state, sum)           2 U states by a step: their share of y added to sum
template <class V, class Recurrence>
VISQ_INLINE void scan_channels(const Recurrence& recurrence, const ScanSteps& p, const Operation& op, const Frame& f,
                               int64_t c) {
  using K = Lanes<V>;
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const ScanRoom room = scan_room(p, f.scratch);
  const int64_t L = p.L, N = p.N, width = 2 * V::W;
  const uint16_t* a = p.a + c * N;
  const auto y_channel = V::load(p.y_channel + c);
  for (int64_t i = 0; i < N * V::W; ++i) room.state[i] = 0;
  const auto make_step = [&](int64_t s) __attribute__((always_inline)) {
    const int64_t t = scan_row(L, p.reverse, s);
    // float32 where the simulation runs this scan alone (Engine::run_alone, tests/ops/test_fixed_scan.py).
    const auto delta_t = delta.codes ? decode<V>(*delta.codes, t, c, f.row<uint8_t>(delta, t) + c)
                                     : V::load(f.row<float>(delta, t) + c);
    const auto u_t = u.codes ? decode<V>(*u.codes, t, c, f.row<uint8_t>(u, t) + c) : V::load(f.row<float>(u, t) + c);
    return recurrence.make_step(s, delta_t, u_t);
  };
  auto next = make_step(0);
  for (int64_t s = 0; s < L; ++s) {
    const auto step = next;
    next = make_step(s + 1 < L ? s + 1 : s);  // early: what it waits for passes while the states are advanced
    const int16_t *beta = room.beta + s * N, *C = room.C + s * N;
    auto sum = K::izero();
    int64_t n = 0;  // pairs of states
    for (; n + kLockstep <= N / 2; n += kLockstep)
      sum = recurrence.template advance<kLockstep>(step, a + n * width, beta + 2 * n, C + 2 * n,
                                                   room.state + n * width, sum);
    for (; n < N / 2; ++n)
      sum = recurrence.template advance<1>(step, a + n * width, beta + 2 * n, C + 2 * n, room.state + n * width, sum);
    const auto y = V::mul(V::mul(K::to_float(sum), y_channel), V::set1(p.y_step[s]));
    store_y<V>(op, f, scan_row(L, p.reverse, s), c, y);
  }
}

// 2^-e of 2 U states, e = d a with its point between the halves of the product or, unless `kAligned`, where `whole`
// and `join` say: 2^-f by the coefficients of visq.runtime.arithmetic.exp2_fixed, shifted by the whole part.
template <class V, int U, bool kAligned>
VISQ_INLINE void power16(typename Lanes<V>::S d, const uint16_t* a, const typename Lanes<V>::S (&power)[4], bool halves,
                         typename Lanes<V>::Count point, typename Lanes<V>::Count join, typename Lanes<V>::S* t) {
  using K = Lanes<V>;
  typename K::S whole[U], f[U];
  VISQ_EACH whole[j] = K::mulhi_u(d, K::sload(a + j * 2 * V::W));
  VISQ_EACH f[j] = K::mullo(d, K::sload(a + j * 2 * V::W));
  if (!kAligned && !halves) {
    VISQ_EACH f[j] = K::join(whole[j], f[j], join, point);
    VISQ_EACH whole[j] = K::shr(whole[j], point);
  }
  VISQ_EACH t[j] = K::sub(power[2], K::mulhi_u(f[j], power[3]));
  VISQ_EACH t[j] = K::sub(power[1], K::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = K::sub(power[0], K::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = K::shr_each(t[j], whole[j]);
}

}  // namespace visq::engine
