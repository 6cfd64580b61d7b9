// The kernels of one vector type, gathered. Included only by the kernels_<isa>.cpp files.
#pragma once
#include "conv1d.h"
#include "fake_quantize.h"
#include "kernels.h"
#include "scan.h"
#include "scan_backward.h"
#include "similarity.h"
#include "state_search.h"
#include "vec.h"

namespace visq {

template <class V>
const Kernels* kernel_table(const char* name) {
  static const Kernels table = {
      name,
      scan_forward<V>,
      scan_backward<V>,
      scan_states<V>,
      conv_forward<V>,
      conv_backward<V>,
      fake_quantize<V>,
      similarity_sums<V>,
      search_state_scales<V>,
  };
  return &table;
}

}  // namespace visq
