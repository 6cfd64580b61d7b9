// Arguments of the kernels behind visq.ops, and the table of kernels that each level fills.
#pragma once
#include <cstdint>

#include "shared.h"

namespace visq::ops {

// A float32 [B, L, C] array: channels are contiguous, batch and row have any stride (in elements).
struct Rows {
  const float* data;
  int64_t batch, row;
  VISQ_SHARED const float* at(int64_t b, int64_t l) const { return data + b * batch + l * row; }
};

struct ScanArgs {
  int64_t B, L, D, N;
  Rows u, delta;  // [B, L, D]
  const float* A;  // [D, N], contiguous
  Rows Bm, Cm;     // [B, L, N]
  int threads;
};

// How Abar or Bbar is rounded. Uniform: clamp(rint(x * inv), qmin, qmax) * scale. Table: values[how many thresholds lie
// below x].
struct FactorCodec {
  enum Kind { kNone = 0, kUniform = 1, kTable = 2 };
  int kind;
  float scale, inv, qmin, qmax;
  const float *values, *thresholds;  // [count + 1], [count]
  int count;
};

// How the state is rounded. Its scale at step t is step[t] * (channel[c] * state[n]). Without `step` it is not rounded.
struct StateCodec {
  const float *step, *channel, *state;
  float qmin, qmax;
  bool read_quantized;
};

struct QuantArgs {
  StateCodec state;
  FactorCodec abar, bbar;
};

// All contiguous: u, delta [B, L, D]; A [D, N]; B, C [B, L, N].
struct ScanGrads {
  float *u, *delta, *A, *Bm, *Cm;
};

struct ConvArgs {
  int64_t B, L, D, K;
  Rows x;               // [B, L, D]
  const float* weight;  // [D, K]
  const float* bias;    // [D] or nullptr
  int threads;
};

struct FakeQuantizeArgs {
  enum Axis { kTensor = 0, kColumn = 1, kRow = 2 };
  int64_t B, L, C;
  Rows x;  // [B, L, C]
  const float *scale, *zero;  // [1], [C] or [L] by axis; zero may be nullptr
  const float* smooth;        // [C] or nullptr
  float qmin, qmax;
  int axis;
  int threads;
};

struct SimilarityArgs {
  enum Metric { kCosine = 0, kL1 = 1, kL2 = 2 };
  int64_t R, C, G, K;
  const float *x, *reference, *weight;  // [R, C]; weight may be nullptr
  const int32_t* labels;                // [C] (by channel) or [R] (by token)
  const float* candidates;              // [G, K]
  float qmin, qmax;
  bool by_token;
  int metric;
  float *first, *second;  // results, [R, G, K] by channel or [R, K] by token; `second` only for the cosine: sums of squares
  int threads;
};

struct StateSearchArgs {
  ScanArgs scan;
  QuantArgs quant;        // quant.state.step is the base, [L]
  Rows y_ref;             // [B, L, D]
  const int32_t* groups;  // [L], non-decreasing
  const float* candidates;
  int64_t K;
  float* step;  // [L]: the result
};

struct OpKernels {
  void (*scan_forward)(const ScanArgs&, const QuantArgs&, float* y);
  void (*scan_backward)(const ScanArgs&, const QuantArgs&, Rows grad_y, const ScanGrads&);
  void (*scan_states)(const ScanArgs&, float* h);
  void (*conv_forward)(const ConvArgs&, float* y);
  void (*conv_backward)(const ConvArgs&, Rows grad_y, float* grad_x, float* grad_weight, float* grad_bias);
  void (*fake_quantize)(const FakeQuantizeArgs&, float* y);
  void (*similarity_sums)(const SimilarityArgs&);
  void (*search_state_scales)(const StateSearchArgs&);
};

}  // namespace visq::ops
