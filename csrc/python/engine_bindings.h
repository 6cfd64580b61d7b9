// Adds class Engine to the extension module.
#pragma once
#include <nanobind/nanobind.h>

namespace visq::engine {

void bind(nanobind::module_& m);

}  // namespace visq::engine
