#pragma once
#include "scan.h"
namespace visq {
template <class V> void search_state_scales(const StateSearchArgs&) {}
}
