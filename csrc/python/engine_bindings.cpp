// Python bindings of the engine. It is made from the bytes of a flat file; images and results are NumPy's, used in place.
#include "python/engine_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "file/loader.h"
#include "isa.h"
#include "program/engine.h"

namespace nb = nanobind;

namespace visq::engine {
namespace {

template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// Keeps an array of Python's alive for as long as something in C++ uses it.
std::shared_ptr<const void> owner(const In<uint8_t>& array) {
  return std::shared_ptr<const void>(new In<uint8_t>(array), [](const void* held) {
    const nb::gil_scoped_acquire gil;
    delete static_cast<const In<uint8_t>*>(held);
  });
}

std::unique_ptr<Engine> load(const std::string& isa, const In<uint8_t>& array) {
  if (reinterpret_cast<uintptr_t>(array.data()) % file::kAlign)
    throw std::invalid_argument("the file does not start at a multiple of 64 bytes");
  return file::load_engine(file::open_container({array.data(), array.size(), owner(array)}), isa);
}

}  // namespace

void bind(nb::module_& m) {
  m.def("has_engine_isa", [](const std::string& name) { return engine_kernels(name) != nullptr; });
  m.def("file_checksum", [](const In<uint8_t>& array) { return file::checksum(array.data(), array.size()); });

  nb::class_<Engine>(m, "Engine")
      .def(nb::new_(&load), nb::arg("isa"), nb::arg("file"))
      .def("run",
           [](Engine& e, In<float> images, Out<float> out, int threads) {
             const int64_t batch = images.ndim() ? static_cast<int64_t>(images.shape(0)) : 0;
             if (static_cast<int64_t>(images.size()) != batch * e.image_floats() ||
                 static_cast<int64_t>(out.size()) != batch * e.output_floats())
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
      .def("phase_times",
           [](Engine& e, int threads) {
             std::vector<std::tuple<std::string, int64_t, double>> found;
             for (const auto& p : e.phase_times(threads)) found.emplace_back(p.kind, p.tasks, p.seconds);
             return found;
           })
      .def_prop_ro("output_width", &Engine::output_floats)
      .def_prop_ro("output_map",
                   [](const Engine& e) {
                     const auto map = e.output_map();
                     return std::vector<int64_t>(map.begin(), map.end());
                   })
      .def_prop_ro("parameter_bytes", &Engine::parameter_bytes)
      .def_prop_ro("isa", [](const Engine& e) { return e.isa(); });
}

}  // namespace visq::engine
