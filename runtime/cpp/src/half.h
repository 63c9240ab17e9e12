// Float32 values as graphs in half precision take them.
#pragma once

#include <cstddef>

#include "manifest.h"

namespace hmar::core {

// Writes values in a dtype of floating point, rounded half to even.
void store(const float* values, size_t count, Dtype dtype, void* into);

}  // namespace hmar::core
