// The kernels of visq.ops of one level. Compiled once a level, like kernels/engine_level.cpp.
#include VISQ_LANES

#include "ops/causal_conv.h"
#include "ops/fake_quantize.h"
#include "ops/scan_backward.h"
#include "ops/similarity.h"
#include "ops/state_search.h"

namespace visq::ops::VISQ_LEVEL {

const OpKernels* kernels() {
  using V = ::visq::VISQ_LEVEL::Vector;
  static const OpKernels table = {
      scan_forward<V>,  scan_backward<V>, scan_states<V>,     conv_forward<V>,
      conv_backward<V>, fake_quantize<V>, similarity_sums<V>, search_state_scales<V>,
  };
  return &table;
}

}  // namespace visq::ops::VISQ_LEVEL
