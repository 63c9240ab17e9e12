#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "error.h"
#include "numpy_math.h"

namespace hmar::core {

constexpr double kMaskCfgRatio = 1e-6;  // guidance of masked passes, as a fraction of cfg

double guidance(double cfg, int scale_idx, int num_scales) { return cfg * scale_idx / (num_scales - 1); }

double masked_guidance(double cfg) { return cfg * kMaskCfgRatio; }

Sampler::Sampler(size_t vocab_size, int top_k, double top_p)
    : top_k_(top_k), top_p_(top_p), logits_V_(vocab_size), scratch_V_(vocab_size), p_V_(vocab_size) {
    kept_.reserve(vocab_size);
}

void Sampler::load(const float* logits_V) { std::copy_n(logits_V, logits_V_.size(), logits_V_.begin()); }

void Sampler::load_guided(const float* cond_V, const float* uncond_V, double t) {
    const float one_and_t = float(1 + t), only_t = float(t);
    for (size_t v = 0; v < logits_V_.size(); ++v) {
        logits_V_[v] = one_and_t * cond_V[v] - only_t * uncond_V[v];
    }
}

// Every logit below the k-th largest goes; equal ones stay.
void Sampler::keep_top_k() {
    const size_t V = logits_V_.size(), k = size_t(top_k_);
    float least = -std::numeric_limits<float>::infinity();
    if (0 < k && k < V) {
        scratch_V_ = logits_V_;
        const auto kth = scratch_V_.begin() + ptrdiff_t(k - 1);
        std::nth_element(scratch_V_.begin(), kth, scratch_V_.end(), std::greater<float>());
        least = *kth;
    }
    kept_.clear();
    for (size_t v = 0; v < V; ++v) {
        if (logits_V_[v] >= least) kept_.push_back({logits_V_[v], uint32_t(v)});
    }
}

// In ascending order (stable), with float32 probabilities accumulated, every token whose mass so far is at
// most 1 - top_p goes, but never the last one.
void Sampler::keep_nucleus() {
    std::sort(kept_.begin(), kept_.end(), [](const Candidate& a, const Candidate& b) {
        return a.logit < b.logit || (a.logit == b.logit && a.token < b.token);
    });
    // what top-k removed comes first, without mass; it counts in the order of the sum
    const size_t V = logits_V_.size(), first = V - kept_.size();
    std::vector<float>& p_V = scratch_V_;
    std::fill(p_V.begin(), p_V.begin() + ptrdiff_t(first), 0.0f);
    for (size_t i = 0; i < kept_.size(); ++i) p_V[first + i] = kept_[i].logit - kept_.back().logit;
    exp_float32(p_V.data() + first, kept_.size());
    const float total = pairwise_sum(p_V.data(), V), outside = float(1 - top_p_);
    float mass = 0;
    size_t gone = 0;
    while (gone + 1 < kept_.size() && (mass += p_V[first + gone] / total) <= outside) ++gone;
    kept_.erase(kept_.begin(), kept_.begin() + ptrdiff_t(gone));
}

Choice Sampler::choose(std::optional<double> u) {
    const auto is_usable = [](float x) { return x < std::numeric_limits<float>::infinity(); };
    const float max_logit = *std::max_element(logits_V_.begin(), logits_V_.end());
    if (!std::all_of(logits_V_.begin(), logits_V_.end(), is_usable) || !std::isfinite(max_logit)) {
        throw Error(
            HMAR_BACKEND_FAILED,
            "logits are infinite or not numbers; the weights are damaged, or the precision overflows: "
            "check the bundle's files, or export with another --precision");
    }
    keep_top_k();
    if (top_p_ > 0) keep_nucleus();
    std::fill(p_V_.begin(), p_V_.end(), 0.0);
    for (const Candidate& c : kept_) p_V_[c.token] = std::exp(double(c.logit) - double(max_logit));
    const double sum = pairwise_sum(p_V_.data(), p_V_.size());
    for (double& p : p_V_) p /= sum;
    size_t token = 0;  // as NumPy's argmax, where rounding lets no token exceed the total
    if (u) {
        double total = 0, cdf = 0;
        for (const double p : p_V_) total += p;
        for (size_t v = 0; v < p_V_.size(); ++v) {
            if ((cdf += p_V_[v]) > *u * total) {
                token = v;
                break;
            }
        }
    } else {
        token = size_t(std::max_element(p_V_.begin(), p_V_.end()) - p_V_.begin());
    }
    return {int32_t(token), float(p_V_[token])};
}

std::vector<int32_t> least_confident(const float* confidence_l, const std::vector<int32_t>& candidates,
                                     size_t count) {
    std::vector<int32_t> sorted = candidates;
    std::stable_sort(sorted.begin(), sorted.end(),
                     [&](int32_t a, int32_t b) { return confidence_l[a] < confidence_l[b]; });
    sorted.resize(std::min(count, sorted.size()));
    return sorted;
}

}  // namespace hmar::core
