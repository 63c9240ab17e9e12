// The plan of Hi-MAR's two phases, as runtime/himar_schedule.py states it.
#pragma once

#include <cstddef>
#include <vector>

namespace hmar::core {

constexpr int kMaxSteps =
    1 << 18;  // of the dense phase, so that their random numbers have counters of their own

enum class Phase { pivot, dense };

// One step of a phase. Weights are of the form `uncond + w (cond - uncond)`.
struct HimarStep {
    size_t unknown;    // tokens of an image that are unknown before the step
    size_t remaining;  // those still unknown after it; they are the first of the image's order
    double weight;
};

// Steps of one phase. The unknown share follows a cosine and is 0 only after the last step; with
// `grows`, the weight grows from 1 with the known share.
std::vector<HimarStep> plan(size_t num_tokens, size_t num_steps, double cfg, bool grows);

}  // namespace hmar::core
