// For headers that every level includes: a function they define must be inlined, because a copy of its own would be
// shared between objects compiled for different processors.
#pragma once

#define VISQ_SHARED __attribute__((always_inline))
