// The scale loop of HMAR, as runtime/trajectory.py goes it: which graph runs when, and what goes into it.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "draws.h"
#include "generation.h"
#include "sampler.h"
#include "step_runner.h"

namespace hmar::core {

struct Settings {
    double cfg, top_p, skip_guidance_below;
    int top_k;
    bool sees_prefix;   // next-scale passes see all earlier scales too; there are then no masked passes
    Schedule schedule;  // empty = no masked passes
};

// Tokens from outside, that stay in every pass; (num_images, num_tokens). Null = none.
struct KnownTokens {
    const int32_t* tokens = nullptr;
    const uint8_t* keep = nullptr;  // not 0 = keep this one
};

struct ScaleEvent {
    int scale_idx, pn, num_scales;
    Part images;
    const int32_t* tokens;                  // (B, pn * pn), final
    std::function<void(uint8_t*)> preview;  // writes (B, H, W, 3)
};

struct HmarRequest {
    std::vector<int32_t> labels;  // 0 .. num_classes - 1, or num_classes = no class
    Settings settings;
    std::unique_ptr<Draws> draws;
    KnownTokens known;
    std::function<void(const ScaleEvent&)> on_scale;  // ends the generation with an exception; may be empty
    Cancelled cancelled;
};

// Where results go; null = not wanted.
struct HmarOutput {
    uint8_t* pixels;  // (num_images, side, side, 3)
    float* image;     // (num_images, 3, side, side), in [0, 1]
    int32_t* tokens;  // (num_images, num_tokens)
};

// Images (B, 3, H, W) float32 in [0, 1].
Tensor decode(StepRunner& runner, const Tensor& f_hat);

// One generation of a part of a request, which is kept as a reference.
class HmarTrajectory {
  public:
    HmarTrajectory(StepRunner& runner, const HmarRequest& request, Part part);

    // The reconstruction f_hat, (B, Cvae, P, P). Throws Error.
    Tensor run();

    // Final tokens of every scale, (B, pn * pn) each; after `run`.
    const std::vector<Tensor>& tokens() const { return tokens_; }

  private:
    Tensor predict(int k);
    std::vector<std::vector<int32_t>> open_positions(int k) const;
    void keep_known(int k, int32_t* tokens_Bl) const;
    void draw(int k, int pass, const Tensor& logits, double t, const bool* is_open_Bl, int32_t* tokens_Bl,
              float* confidences_Bl);
    Tensor next_scale_logits(int k, int halves);
    Tensor prefix_logits(int k, int halves);
    Tensor mask_logits(int k, const Tensor& tokens, const Tensor& token_mask, int halves);
    Tensor logits(const GraphSpec& graph, Values feeds, int halves, int64_t length);
    Shape map_shape(int k) const { return {batch_, int64_t(model_.length(k)), model_.latent_channels}; }
    int halves(double t) const { return t >= settings_.skip_guidance_below ? 2 : 1; }

    StepRunner& runner_;
    const ModelSpec& model_;
    const HmarRequest& request_;
    const Settings& settings_;
    const Part part_;
    const int64_t batch_;
    Sampler sampler_;
    std::optional<Values> conditions_[2];  // of one half, of both
    std::vector<Tensor> maps_, tokens_;    // next-scale inputs so far, each (B, l, Cvae); tokens so far
};

}  // namespace hmar::core
