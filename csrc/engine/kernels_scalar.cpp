#include "kernel_table.h"

namespace visq::engine {

const Kernels* scalar_kernels() { return kernel_table<VecScalar>("scalar"); }

}  // namespace visq::engine
