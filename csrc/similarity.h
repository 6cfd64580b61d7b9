#pragma once
#include "scan.h"
namespace visq {
template <class V> void similarity_sums(const SimilarityArgs&) {}
}
