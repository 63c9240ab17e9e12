// Counter-based uniform numbers, as runtime/philox.py defines them.
#pragma once

#include <array>
#include <cstdint>

namespace hmar::core {

constexpr int kMaxPasses = 256;  // of one scale, the next-scale pass included

using Words = std::array<uint32_t, 4>;

// One output block of Philox-4x32-10.
Words philox_4x32(Words counter, std::array<uint32_t, 2> key);

// The block of a seed and an image; `first` and `second` are words 0 and 1 of the counter.
Words philox_block(uint64_t seed, uint64_t image_index, uint32_t second, uint32_t first);

// The number in [0, 1) of 53 bits of the first two words.
double unit_interval(const Words& words);

// The number in [0, 1) of one token. Pass 0 is the next-scale pass, pass j the j-th masked one.
double uniform(uint64_t seed, uint64_t image_index, int scale_idx, int pass_idx, uint32_t position);

}  // namespace hmar::core
