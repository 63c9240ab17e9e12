// Counter-based uniform numbers, as runtime/philox.py defines them.
#pragma once

#include <array>
#include <cstdint>

namespace hmar::core {

constexpr int kMaxPasses = 256;  // of one scale, the next-scale pass included

// One output block of Philox-4x32-10.
std::array<uint32_t, 4> philox_4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// The number in [0, 1) of one token. Pass 0 is the next-scale pass, pass j the j-th masked one.
double uniform(uint64_t seed, uint64_t image_index, int scale_idx, int pass_idx, uint32_t position);

}  // namespace hmar::core
