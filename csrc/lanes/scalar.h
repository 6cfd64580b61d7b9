// One element at a time, for any processor: nothing but the fallbacks.
#pragma once
#include "lanes/generic.h"

namespace visq::VISQ_LEVEL {

struct ScalarTypes {
  using T = float;
  using I = int32_t;
  struct S {
    int16_t element[2];
  };
};

struct Vector : Generic<ScalarTypes> {};

}  // namespace visq::VISQ_LEVEL
