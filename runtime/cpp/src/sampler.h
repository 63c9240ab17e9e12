// The sampling rule of runtime/sampler.py: the same tokens from the same logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace hmar::core {

// Guidance weight t of the next-scale pass of one scale: none at the first, all at the last.
double guidance(double cfg, int scale_idx, int num_scales);

// Guidance weight t of all masked passes.
double masked_guidance(double cfg);

struct Choice {
    int32_t token;
    float confidence;  // its probability under the truncated distribution
};

// Chooses one token at a time; its buffers are used again, so it is for one thread.
class Sampler {
  public:
    Sampler(size_t vocab_size, int top_k, double top_p);

    // Logits of a token without guidance.
    void load(const float* logits_V);

    // `(1 + t) cond - t uncond`.
    void load_guided(const float* cond_V, const float* uncond_V, double t);

    // The token at `u` of the truncated distribution of the loaded logits, whose cumulated probability first
    // exceeds u times the total in vocabulary order; without u the most probable one, the first of equals.
    // Throws Error where a logit is not a number or infinite.
    Choice choose(std::optional<double> u);

  private:
    struct Candidate {
        float logit;
        uint32_t token;
    };

    void keep_top_k();
    void keep_nucleus();

    const int top_k_;
    const double top_p_;
    std::vector<float> logits_V_, scratch_V_;
    std::vector<double> p_V_;
    std::vector<Candidate> kept_;
};

// The `count` least confident of `candidates` (positions), lowest first, equal ones in the given order.
// `confidence_l` is by position.
std::vector<int32_t> least_confident(const float* confidence_l, const std::vector<int32_t>& candidates,
                                     size_t count);

}  // namespace hmar::core
