// Python bindings of the engine. Arrays are NumPy's: parameters are copied, images and results are used in place.
#include "python/engine_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "program/engine.h"

namespace nb = nanobind;

namespace visq::engine {
namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <class T>
Array<T> array(const In<T>& x) {
  return {x.data(), static_cast<int64_t>(x.size())};
}

template <class T>
T number(const nb::dict& numbers, const char* name) {
  return nb::cast<T>(numbers[name]);
}

ScanArrays scan_arrays(const nb::dict& d) {
  const auto floats = [&](const char* name) { return array(number<In<float>>(d, name)); };
  return {floats("input_channel"), floats("y_channel"), floats("beta_scale"), floats("input_step"), floats("y_step"),
          array(number<In<int16_t>>(d, "lift"))};
}

ExponentArrays exponent_arrays(const nb::dict& d) {
  return {number<int>(d, "shift"), array(number<In<int32_t>>(d, "a")), array(number<In<float>>(d, "delta_scale"))};
}

FactorArrays factor(const nb::dict& d) {
  return {number<int>(d, "kind"),  number<float>(d, "step"), number<float>(d, "inverse"),
          number<float>(d, "low"), number<float>(d, "high"), array(number<In<float>>(d, "table")),
          array(number<In<float>>(d, "thresholds"))};
}

}  // namespace

void bind(nb::module_& m) {
  m.def("has_engine_isa", [](const std::string& name) { return engine_kernels(name) != nullptr; });

  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const std::string&, int64_t, int64_t>(), nb::arg("isa"), nb::arg("channels"), nb::arg("size"))
      .def("add_codec",
           [](Engine& e, int64_t width, int64_t rows, In<float> inverse, In<float> step, In<float> inverse_token,
              In<float> step_token, In<float> zero, In<float> zero_token, float low, float high, In<float> table,
              In<float> thresholds) {
             return e.add_codec(width, rows, array(inverse), array(step), array(inverse_token), array(step_token),
                                    array(zero), array(zero_token), low, high, array(table), array(thresholds));
           })
      .def("add_tensor", &Engine::add_tensor)
      .def("patches", &Engine::patches)
      .def("concat", &Engine::concat)
      .def("concat_part", [](Engine& e, int tensor, int64_t first, int64_t count,
                             In<float> constant) { e.concat_part(tensor, first, count, array(constant)); })
      .def("rows", &Engine::rows)
      .def("transpose", &Engine::transpose)
      .def("mean", &Engine::mean)
      .def("int_linear",
           [](Engine& e, int64_t rows, int64_t width, int input, In<int8_t> weight, In<float> scale, In<float> token,
              In<int32_t> zero, In<float> bias) {
             e.int_linear(rows, width, input, array(weight), array(scale), array(token), array(zero), array(bias));
           })
      .def("wide_linear",
           [](Engine& e, int64_t rows, int64_t width, int input, In<int8_t> weight, In<float> scale, In<float> token,
              In<float> bias, In<int16_t> values, In<int16_t> offset, In<int16_t> factor) {
             e.wide_linear(rows, width, input, array(weight), array(scale), array(token), array(bias), array(values),
                           array(offset), array(factor));
           })
      .def("float_linear", [](Engine& e, int64_t rows, int64_t width, int input, In<float> weight,
                              In<float> bias) { e.float_linear(rows, width, input, array(weight), array(bias)); })
      .def("int_conv",
           [](Engine& e, int input, In<int8_t> weight, In<float> scale, In<int32_t> zero, In<float> bias,
              bool reverse) {
             e.int_conv(input, array(weight), array(scale), array(zero), array(bias), reverse);
           })
      .def("float_conv", [](Engine& e, int input, In<float> weight, In<float> bias,
                            bool reverse) { e.float_conv(input, array(weight), array(bias), reverse); })
      .def("int_conv2d",
           [](Engine& e, int input, int64_t kernel, int64_t padding, In<int8_t> weight, In<float> scale,
              In<int32_t> zero, In<float> bias) {
             e.int_conv2d(input, kernel, padding, array(weight), array(scale), array(zero), array(bias));
           })
      .def("float_conv2d", [](Engine& e, int input, int64_t kernel, int64_t padding, In<float> weight,
                              In<float> bias) { e.float_conv2d(input, kernel, padding, array(weight), array(bias)); })
      .def("fixed_scan",
           [](Engine& e, int u, int delta, int B, int C, int y, bool reverse, nb::dict n, nb::dict steps,
              In<int32_t> abar_power, In<int16_t> abar_lut, In<int16_t> bbar_lut, In<float> drive_channel,
              In<int32_t> decay) {
             const auto i = [&](const char* name) { return number<int>(n, name); };
             const ScanNumbers numbers = {i("abar_fraction"), i("abar_high"), i("abar_bits"), i("bbar_low"),
                                          i("bbar_high"), i("bbar_bits"), i("state_low"), i("state_high"), i("point")};
             e.fixed_scan(u, delta, B, C, y, reverse, numbers, scan_arrays(steps), exponent_arrays(steps),
                          array(abar_power), array(abar_lut), array(bbar_lut), array(drive_channel), array(decay));
           })
      .def("fused_scan",
           [](Engine& e, int u, int delta, int B, int C, int y, bool reverse, nb::dict steps,
              In<int32_t> power, int low, int high, int point) {
             e.fused_scan(u, delta, B, C, y, reverse, scan_arrays(steps), exponent_arrays(steps), array(power), low, high,
                          point);
           })
      .def("ladder_scan",
           [](Engine& e, int u, int delta, int B, int C, int y, bool reverse, nb::dict steps, In<float> rate,
              In<int32_t> ratio, int low, int high, int point) {
             e.ladder_scan(u, delta, B, C, y, reverse, scan_arrays(steps), array(rate), array(ratio), low, high, point);
           })
      .def("float_scan",
           [](Engine& e, int u, int delta, int B, int C, int y, bool reverse, In<float> A, nb::dict abar,
              nb::dict bbar, In<float> bbar_channel, In<float> bbar_inverse, In<float> step, In<float> scale, float low,
              float high, bool read_quantized) {
             e.float_scan(u, delta, B, C, y, reverse, array(A), factor(abar), factor(bbar),
                         array(bbar_channel), array(bbar_inverse), array(step),
                          array(scale), low, high, read_quantized);
           })
      .def("join", &Engine::join)
      .def("load", &Engine::load)
      .def("slice", &Engine::slice)
      .def("unary", &Engine::unary)
      .def("binary", &Engine::binary)
      .def("with_constant", [](Engine& e, const std::string& name, int dst, int src, In<float> constant,
                               int64_t slot) { e.with_constant(name, dst, src, array(constant), slot); })
      .def("mul_scalar", &Engine::mul_scalar)
      .def("rms_norm", [](Engine& e, int dst, int src, In<float> weight, float eps,
                          int64_t slot) { e.rms_norm(dst, src, array(weight), eps, slot); })
      .def("layer_norm", [](Engine& e, int dst, int src, In<float> weight, In<float> bias, float eps,
                            int64_t slot) { e.layer_norm(dst, src, array(weight), array(bias), eps, slot); })
      .def("round", &Engine::round)
      .def("rotate", [](Engine& e, int dst, int src, In<float> inverse_divisor, In<float> matrix,
                        int64_t slot) { e.rotate(dst, src, array(inverse_divisor), array(matrix), slot); })
      .def("store", &Engine::store)
      .def("finish", &Engine::finish)
      .def("run",
           [](Engine& e, In<float> images, Out<float> out, int threads) {
             const int64_t batch = images.ndim() ? static_cast<int64_t>(images.shape(0)) : 0;
             if (static_cast<int64_t>(images.size()) != batch * e.image_floats() ||
                 static_cast<int64_t>(out.size()) != batch * e.output_width())
               throw std::invalid_argument("images or results have another size");
             nb::gil_scoped_release release;
             e.run(images.data(), batch, out.data(), threads);
           })
      .def("run_single",
           [](Engine& e, const std::vector<std::pair<int, uintptr_t>>& arrays, int64_t batch, uintptr_t out,
              int threads) {
             std::vector<Engine::Input> inputs;
             for (const auto& [tensor, data] : arrays)
               inputs.push_back({tensor, reinterpret_cast<const void*>(data)});
             nb::gil_scoped_release release;
             e.run_single(inputs, batch, reinterpret_cast<float*>(out), threads);
           })
      .def("read_tensor",
           [](Engine& e, int tensor, Out<uint8_t> out) {
             e.read_tensor(tensor, out.data(), static_cast<int64_t>(out.size()));
           })
      .def("bodies", &Engine::bodies)
      .def("enable_profile", &Engine::enable_profile)
      .def("profile", &Engine::profile)
      .def_prop_ro("parameter_bytes", &Engine::parameter_bytes)
      .def_prop_ro("isa", [](const Engine& e) { return e.isa(); });
}

}  // namespace visq::engine
