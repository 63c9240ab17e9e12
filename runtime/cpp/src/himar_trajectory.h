// The two phases of Hi-MAR, as runtime/himar_trajectory.py goes them: which graph runs when, and what goes
// in.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "diffusion.h"
#include "himar_draws.h"
#include "step_runner.h"

namespace hmar::core {

struct HimarSettings {
    size_t num_iter;
    double cfg, re_cfg, temperature;
    bool grows;  // guidance grows with the share of known tokens
    std::string pivot_diffusion_steps, dense_diffusion_steps;
};

struct StepEvent {
    Phase phase;
    size_t step_idx, num_steps;
    Part images;
    const float* tokens;                    // of the grid of the phase so far, (B, n, C)
    std::function<void(uint8_t*)> preview;  // writes (B, 64, 64, 3) of pivots, (B, H, W, 3) of dense tokens
};

struct HimarRequest {
    size_t num_images;
    std::vector<int32_t>
        labels;  // 0 .. num_classes - 1, or num_classes = no class; empty = there are vectors
    const float* cond = nullptr;  // (num_images, embed_dim); null = there are labels
    HimarSettings settings;
    std::unique_ptr<HimarDraws> draws;
    std::function<void(const StepEvent&)> on_step;  // ends the generation with an exception; may be empty
    Cancelled cancelled;
};

// Images (B, 3, H, W) float32 of dense tokens (B, N, C); [0, 1] is black to white, more is possible.
Tensor decode_dense(StepRunner& runner, const Tensor& dense);

// Low-resolution images (B, 3, 64, 64) of pivots (B, P, C).
std::vector<float> decode_pivots(StepRunner& runner, const Tensor& pivots);

// One generation of a part of a request, which is kept as a reference.
class HimarTrajectory {
  public:
    HimarTrajectory(StepRunner& runner, const HimarRequest& request, Part part);

    // Throws Error.
    void run();

    // After `run`: (B, P, C) and (B, N, C) float32.
    const Tensor& pivots() const { return pivots_; }
    const Tensor& dense() const { return dense_; }

  private:
    void condition();
    Tensor class_rows(const std::vector<int32_t>& labels);
    Tensor sample_pivots();
    void sample_dense(const Tensor& small_z);
    Values run_step(const GraphSpec& graph, const Values& feeds, int halves);
    std::vector<float> sample_tokens(const Denoising& step, const Tensor& head_cond);
    Positions orders(Phase phase, size_t length) const;
    uint64_t seed() const { return seeded_ != nullptr ? seeded_->seed() : 0; }
    void report(Phase phase, size_t step_idx, size_t num_steps);

    StepRunner& runner_;
    const HimarModelSpec& model_;
    const HimarRequest& request_;
    const Part part_;
    const int64_t batch_;
    const SeededHimarDraws* const seeded_;  // null where the caller gives orders and noise
    std::vector<uint64_t> image_index_;     // of the part, if seeded
    Tensor cond_, pivots_, dense_;          // cond_ is (2B, D), its second half without condition
};

}  // namespace hmar::core
