// The low-resolution image of a Hi-MAR generation, as runtime/low_resolution.py makes it.
#pragma once

#include <cstddef>
#include <vector>

namespace hmar::core {

constexpr size_t kSmallSidePx = 64;

// Images (B, 3, side, side) resized to (B, 3, 64, 64): bicubic, half-pixel centres, no antialiasing.
std::vector<float> to_small(const float* image_B3HW, size_t batch, size_t side);

}  // namespace hmar::core
