// Python bindings of visq.ops. Arrays cross as addresses and strides (no torch ABI), so visq.ops checks shapes, dtypes and
// bounds before it calls anything here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <atomic>
#include <string>
#include <tuple>

#include "isa.h"
#include "ops/ops.h"
#include "python/engine_bindings.h"
#include "run/threads.h"

namespace nb = nanobind;
using namespace visq;
using namespace visq::ops;

namespace {

using Address = uintptr_t;
using RowsArg = std::tuple<Address, int64_t, int64_t>;  // address, batch stride, row stride
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;
// kind, scale, qmin, qmax, address of values, address of thresholds, number of thresholds
using FactorArg = std::tuple<int, float, float, float, Address, Address, int>;
// addresses of step, channel, state; qmin, qmax, read_quantized. Step 0: the state is not quantized.
using StateArg = std::tuple<Address, Address, Address, float, float, bool>;
using QuantArg = std::tuple<StateArg, FactorArg, FactorArg>;

std::atomic<const ops::OpKernels*> active{op_kernels("scalar")};
std::string active_name = "scalar";

float* out(Address p) { return reinterpret_cast<float*>(p); }
const float* in(Address p) { return reinterpret_cast<const float*>(p); }
Rows rows(const RowsArg& r) { return {in(std::get<0>(r)), std::get<1>(r), std::get<2>(r)}; }

FactorCodec factor(const FactorArg& q) {
  const auto& [kind, scale, qmin, qmax, values, thresholds, count] = q;
  return {kind, scale, 1.0f / scale, qmin, qmax, in(values), in(thresholds), count};
}

QuantArgs quant(const QuantArg& q) {
  const auto& [s, abar, bbar] = q;
  const auto& [step, channel, state, qmin, qmax, read] = s;
  return {{in(step), in(channel), in(state), qmin, qmax, read}, factor(abar), factor(bbar)};
}

ScanArgs scan(const Sizes& n, const RowsArg& u, const RowsArg& delta, Address A, const RowsArg& B, const RowsArg& C,
              int threads) {
  const auto& [batch, length, channels, states] = n;
  return {batch, length, channels, states, rows(u), rows(delta), in(A), rows(B), rows(C), threads};
}

}  // namespace

NB_MODULE(_C, m) {
  m.doc() = "C++ kernels of visq; call them through visq.ops.";
  auto nogil = nb::call_guard<nb::gil_scoped_release>();

  engine::bind(m);

  m.def("has_isa", [](const std::string& name) {
    return op_kernels(name) != nullptr;
  });
  m.def("set_isa", [](const std::string& name) {
    const ops::OpKernels* kernels = op_kernels(name);
    if (!kernels) throw nb::value_error("this machine or build lacks the instruction set");
    active = kernels, active_name = name;
  });
  m.def("use_openmp", &use_openmp);
  m.def("get_isa", [] { return active_name; });

  m.def(
      "scan_forward",
      [](Sizes n, RowsArg u, RowsArg delta, Address A, RowsArg B, RowsArg C, QuantArg q, Address y, int threads) {
        active.load()->scan_forward(scan(n, u, delta, A, B, C, threads), quant(q), out(y));
      },
      nogil);
  m.def(
      "scan_backward",
      [](Sizes n, RowsArg u, RowsArg delta, Address A, RowsArg B, RowsArg C, QuantArg q, RowsArg grad_y, Address grad_u,
         Address grad_delta, Address grad_A, Address grad_B, Address grad_C, int threads) {
        const ScanGrads grads = {out(grad_u), out(grad_delta), out(grad_A), out(grad_B), out(grad_C)};
        active.load()->scan_backward(scan(n, u, delta, A, B, C, threads), quant(q), rows(grad_y), grads);
      },
      nogil);
  m.def(
      "scan_states",
      [](Sizes n, RowsArg u, RowsArg delta, Address A, RowsArg B, Address h, int threads) {
        active.load()->scan_states(scan(n, u, delta, A, B, B, threads), out(h));
      },
      nogil);
  m.def(
      "conv_forward",
      [](Sizes n, RowsArg x, Address weight, Address bias, Address y, int threads) {
        const auto& [batch, length, channels, taps] = n;
        const ConvArgs a = {batch, length, channels, taps, rows(x), in(weight), in(bias), threads};
        active.load()->conv_forward(a, out(y));
      },
      nogil);
  m.def(
      "conv_backward",
      [](Sizes n, RowsArg x, Address weight, RowsArg grad_y, Address grad_x, Address grad_weight, Address grad_bias,
         int threads) {
        const auto& [batch, length, channels, taps] = n;
        const ConvArgs a = {batch, length, channels, taps, rows(x), in(weight), nullptr, threads};
        active.load()->conv_backward(a, rows(grad_y), out(grad_x), out(grad_weight), out(grad_bias));
      },
      nogil);
  m.def(
      "fake_quantize",
      [](Sizes n, RowsArg x, Address scale, Address zero, Address smooth, float qmin, float qmax, int axis, Address y,
         int threads) {
        const auto& [B, L, C, unused] = n;
        (void)unused;
        active.load()->fake_quantize({B, L, C, rows(x), in(scale), in(zero), in(smooth), qmin, qmax, axis, threads},
                                     out(y));
      },
      nogil);
  m.def(
      "similarity_sums",
      [](Sizes n, Address x, Address reference, Address weight, Address labels, Address candidates, float qmin,
         float qmax, bool by_token, int metric, Address first, Address second, int threads) {
        const auto& [R, C, G, K] = n;
        active.load()->similarity_sums({R, C, G, K, in(x), in(reference), in(weight),
                                        reinterpret_cast<const int32_t*>(labels), in(candidates), qmin, qmax, by_token,
                                        metric, out(first), out(second), threads});
      },
      nogil);
  m.def(
      "search_state_scales",
      [](Sizes n, RowsArg u, RowsArg delta, Address A, RowsArg B, RowsArg C, QuantArg q, RowsArg y_ref, Address groups,
         Address candidates, int64_t K, Address step, int threads) {
        active.load()->search_state_scales({scan(n, u, delta, A, B, C, threads), quant(q), rows(y_ref),
                                            reinterpret_cast<const int32_t*>(groups), in(candidates), K, out(step)});
      },
      nogil);
}
