// The selective scan in float32 (float_scan of visq.integer), for recipes that leave it unquantized. Lanes are channels.
#pragma once
#include "kernels/scan_loop.h"

namespace visq::engine::VISQ_LEVEL {

template <class V>
struct Rounding {
  const FactorCodec& factor;
  typename V::Lookup nearest;

  explicit Rounding(const FactorCodec& f) : factor(f), nearest{f.table, f.thresholds, f.thresholds_count} {}

  typename V::T operator()(typename V::T x) const {
    if (factor.kind == FactorCodec::kNone) return x;
    if (factor.kind == FactorCodec::kTable) return nearest(x);
    const auto code = clamp<V>(V::rint(V::mul(x, V::set1(factor.inverse))), V::set1(factor.low), V::set1(factor.high));
    return V::mul(code, V::set1(factor.step));
  }
};

// Runs W channels from c on. Scratch holds their state, then B and C of one step.
template <class V>
void float_scan_channels(const Operation& op, const Frame& f, int64_t c) {
  const FloatScan& p = op.float_scan;
  const Tensor &u = f.tensors[op.inputs[0]], &delta = f.tensors[op.inputs[1]];
  const Tensor &Bs = f.tensors[op.inputs[2]], &Cs = f.tensors[op.inputs[3]];
  const Rounding<V> round_abar(p.abar), round_bbar(p.bbar);
  const auto one = V::set1(1.0f), low = V::set1(p.low), high = V::set1(p.high);
  const auto bbar_channel = V::load(p.bbar_channel + c), bbar_inverse = V::load(p.bbar_inverse + c);
  float* state = f.scratch;
  float *B_room = state + padded(p.N) * kChannels, *C_room = B_room + padded(p.N);
  // A and the state's scale are [C / 16][N][16].
  const int64_t at = c / kChannels * p.N * kChannels + c % kChannels;
  for (int64_t s = 0; s < p.L; ++s) {
    if (s % p.length == 0)
      for (int64_t i = 0; i < p.N * V::W; ++i) state[i] = 0.0f;
    const int64_t t = scan_row(p.L, p.reverse, s);
    const auto delta_t = delta.codec ? decode<V>(*delta.codec, t, c, f.row<uint8_t>(delta, t) + c)
                                     : V::load(f.row<float>(delta, t) + c);
    auto u_t = u.codec ? decode<V>(*u.codec, t, c, f.row<uint8_t>(u, t) + c) : V::load(f.row<float>(u, t) + c);
    u_t = V::mul(u_t, bbar_channel);
    const auto w_t = V::mul(delta_t, bbar_inverse);
    const float *B = float_row<V>(f, Bs, t, B_room), *C = float_row<V>(f, Cs, t, C_room);
    auto y = V::zero();
    for (int64_t n = 0; n < p.N; ++n) {
      auto decay = V::mul(delta_t, V::load(p.A + at + n * kChannels));
      exp2<V, 1>(&decay);
      decay = round_abar(decay);
      const auto drive = round_bbar(V::mul(w_t, V::set1(B[n])));
      const auto exact = V::add(V::mul(decay, V::load(state + n * V::W)), V::mul(drive, u_t));
      auto kept = exact;
      if (p.step) {
        const auto scale = V::mul(V::set1(p.step[s]), V::load(p.scale + at + n * kChannels));
        kept = V::mul(clamp<V>(V::rint(V::mul(exact, V::div(one, scale))), low, high), scale);
      }
      V::store(state + n * V::W, kept);
      y = V::add(y, V::mul(V::set1(C[n]), p.step && !p.read_quantized ? exact : kept));
    }
    store_y<V>(op, f, t, c, y);
  }
}

template <class V>
void float_scan_block(const Operation& op, const Frame& f, int64_t block) {
  for (int64_t c = block * kChannels; c < (block + 1) * kChannels; c += V::W) float_scan_channels<V>(op, f, c);
}

}  // namespace visq::engine::VISQ_LEVEL
