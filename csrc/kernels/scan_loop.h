// What both scans in fixed point share: the loop over the steps of W channels. A register has two states of each channel
// in 16 bits, so that one multiply-add with the pair (C[2n], C[2n+1]) sums y over states in 32 bits.
#pragma once
#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

constexpr int kLockstep = 4;  // registers advanced together

// Several registers advance in lockstep: a single one is a long chain of dependent instructions.
#define VISQ_EACH _Pragma("GCC unroll 4") for (int j = 0; j < U; ++j)

// A thread's scratch: beta and C of all steps, [L][N] shorts each, then the state of W channels.
struct ScanRoom {
  int16_t *beta, *C, *state;
};

VISQ_INLINE ScanRoom scan_room(const ScanSteps& p, float* scratch) {
  int16_t* beta = reinterpret_cast<int16_t*>(scratch);
  const int64_t each = padded(p.L * p.N + kChannels, 32);  // whole vectors are written
  return {beta, beta + each, beta + 2 * each};
}

VISQ_INLINE int64_t scan_row(int64_t L, bool reverse, int64_t s) { return reverse ? L - 1 - s : s; }

// Writes beta and C in scan order, and zero where N is padded to an even number. Each store writes a whole vector. Its tail
// spills into the next step's slots, which the next iteration overwrites.
template <class V>
void prepare_steps(const ScanSteps& p, const Operation& op, const Frame& f) {
  const Tensor &B = f.tensors[op.inputs[2]], &C = f.tensors[op.inputs[3]];
  const ScanRoom room = scan_room(p, f.scratch);
  for (int64_t s = 0; s < p.L; ++s) {
    const int64_t t = scan_row(p.L, p.reverse, s);
    int16_t *beta = room.beta + s * p.N, *c = room.C + s * p.N;
    const auto scale = V::set1(p.beta_scale[s]), zero = V::set1(C.codec->zero_token[t]);
    for (int64_t n = 0; n < p.N; n += V::W) {
      const auto x = B.codec ? decode<V>(*B.codec, t, n, f.row<uint8_t>(B, t) + n) : V::load(f.row<float>(B, t) + n);
      V::store_shorts(beta + n, V::mul(x, scale));
      V::store_shorts(c + n, V::sub(V::bytes(f.row<uint8_t>(C, t) + n), zero));
    }
    if (p.N > B.width) beta[B.width] = c[B.width] = 0;
  }
}

// Stores y of W channels from c on, as floats or as codes without a table.
template <class V>
VISQ_INLINE void store_y(const Operation& op, const Frame& f, int64_t row, int64_t c, typename V::T y) {
  const Tensor& t = f.tensors[op.y];
  if (!t.codec) return V::store(f.row<float>(t, row) + c, y);
  RowCodec<V>(*t.codec, row).template encode<1>(c, &y, f.row<uint8_t>(t, row) + c);
}

// Runs all steps of W channels from c on. A recurrence has
//   Step                                       what the states of a step have in common
//   make_step(s, delta, u)                     the Step of W channels
//   begin(step)                                what `advance` takes: the Step, or what is made of it
//   advance<U>(step, at, beta, C, state, sum)  advances 2 U states, whose place among those of W channels is `at`, and
//                                              returns sum plus their share of y; may change the step
template <class V, class Recurrence>
VISQ_INLINE void scan_channels(const Recurrence& recurrence, const ScanSteps& p, const Operation& op, const Frame& f,
                               int64_t c) {
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const ScanRoom room = scan_room(p, f.scratch);
  const int64_t L = p.L, N = p.N, width = 2 * V::W;
  const auto y_channel = V::load(p.y_channel + c);
  for (int64_t i = 0; i < N * V::W; ++i) room.state[i] = 0;
  const auto make_step = [&](int64_t s) __attribute__((always_inline)) {
    const int64_t t = scan_row(L, p.reverse, s);
    // The simulation passes delta and u as float32 (Engine::run_single, tests/ops/test_fixed_scan.py).
    const auto delta_t = delta.codec ? decode<V>(*delta.codec, t, c, f.row<uint8_t>(delta, t) + c)
                                     : V::load(f.row<float>(delta, t) + c);
    const auto u_t = u.codec ? decode<V>(*u.codec, t, c, f.row<uint8_t>(u, t) + c) : V::load(f.row<float>(u, t) + c);
    return recurrence.make_step(s, delta_t, u_t);
  };
  auto next = make_step(0);
  for (int64_t s = 0; s < L; ++s) {
    auto step = recurrence.begin(next);
    next = make_step(s + 1 < L ? s + 1 : s);  // early, so that its latency passes while the states advance
    const int16_t *beta = room.beta + s * N, *C = room.C + s * N;
    auto sum = V::izero();
    int64_t n = 0;  // pairs of states
    for (; n + kLockstep <= N / 2; n += kLockstep)
      sum = recurrence.template advance<kLockstep>(step, n * width, beta + 2 * n, C + 2 * n, room.state + n * width,
                                                   sum);
    for (; n < N / 2; ++n)
      sum = recurrence.template advance<1>(step, n * width, beta + 2 * n, C + 2 * n, room.state + n * width, sum);
    const auto y = V::mul(V::mul(V::to_float(sum), y_channel), V::set1(p.y_step[s]));
    store_y<V>(op, f, scan_row(L, p.reverse, s), c, y);
  }
}

// Computes 2^-e of 2 U states, e = d a. Its integer part is the product's high half; unless `kAligned` or `halves`, `point`
// and `up` say where it is. 2^-f of the fraction comes from the coefficients of visq.integer.arithmetic.exp2_fixed.
template <class V, int U, bool kAligned>
VISQ_INLINE void power16(typename V::S d, const uint16_t* a, const typename V::S (&power)[4], bool halves,
                         typename V::Count point, typename V::Count up, typename V::S* t) {
  typename V::S whole[U], f[U];
  VISQ_EACH whole[j] = V::mulhi_u(d, V::sload(a + j * 2 * V::W));
  VISQ_EACH f[j] = V::mullo(d, V::sload(a + j * 2 * V::W));
  if (!kAligned && !halves) {
    VISQ_EACH f[j] = V::funnel(whole[j], f[j], up, point);
    VISQ_EACH whole[j] = V::shr(whole[j], point);
  }
  VISQ_EACH t[j] = V::ssub(power[2], V::mulhi_u(f[j], power[3]));
  VISQ_EACH t[j] = V::ssub(power[1], V::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = V::ssub(power[0], V::mulhi_u(f[j], t[j]));
  VISQ_EACH t[j] = V::shr_each(t[j], whole[j]);
}

}  // namespace visq::engine::VISQ_LEVEL
