// Counter-based normal numbers and orders of Hi-MAR, as runtime/normals.py defines them.
#pragma once

#include <cstdint>
#include <vector>

#include "himar_schedule.h"

namespace hmar::core {

// Standard normal numbers of one draw of an image, (n, channels).
//
// draw: 0 is the first state of a step's diffusion, j + 1 goes into its j-th reverse step.
// positions_n: of the tokens in the grid of the phase.
std::vector<float> normals(uint64_t seed, uint64_t image_index, Phase phase, size_t step, size_t draw,
                           const std::vector<int32_t>& positions_n, size_t channels);

// What names the noise of a step, of draw 0: a word of the counter.
uint32_t noise_counter(Phase phase, size_t step);

// The order of a phase's positions for an image; tokens become known from its end.
std::vector<int32_t> order(uint64_t seed, uint64_t image_index, Phase phase, size_t length);

}  // namespace hmar::core
