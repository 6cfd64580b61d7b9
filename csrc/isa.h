// The instruction sets ("levels") of this build, and which of them this machine has.
#pragma once
#include <string>

namespace visq {
namespace engine {
struct EngineKernels;
}
namespace ops {
struct OpKernels;
}

// The kernels of a level by name; nullptr where the name is unknown or where this build, machine or system lacks it.
const engine::EngineKernels* engine_kernels(const std::string& level);
// The fastest level here, and all levels that this machine and build have, fastest first, with commas.
std::string fastest_level();
std::string levels_here();
// As engine_kernels, for visq.ops, which has fewer levels.
const ops::OpKernels* op_kernels(const std::string& level);

}  // namespace visq
