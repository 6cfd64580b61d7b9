#include "isa.h"
#include "kernel_table.h"

namespace visq {

const Kernels* scalar_kernels() { return kernel_table<VecScalar>("scalar"); }

}  // namespace visq
