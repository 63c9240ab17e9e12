// The sampling of one Hi-MAR step by a seed, for backends that do it at once.
#pragma once

#include <cstdint>
#include <vector>

#include "diffusion.h"
#include "himar_schedule.h"

namespace hmar::core {

using Positions = std::vector<std::vector<int32_t>>;  // of tokens in the grid of a phase, by image

struct Denoising {
    Phase phase;
    size_t step_idx;
    double weight;
    bool is_guided;  // the conditions come in two halves
    double temperature;
    const Positions& positions;
    const DiffusionSchedule& schedule;
    const std::vector<bool>* is_held;  // (B, n), tokens that are known and stay; null = none
    const float* held_tokens;          // (B, n, C)
    uint64_t seed;
    const std::vector<uint64_t>& images;  // name the random numbers, with the seed
};

}  // namespace hmar::core
