// Where the randomness of a Hi-MAR generation comes from: a seed, or the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "denoising.h"
#include "generation.h"

namespace hmar::core {

class HimarDraws {
  public:
    virtual ~HimarDraws() = default;

    // The order of a phase's positions for an image of the request; tokens become known from its end.
    virtual std::vector<int32_t> order(size_t image, Phase phase, size_t length) const = 0;

    // Standard normal numbers (B, n, channels) for tokens of a part; draws as in normals.h.
    virtual std::vector<float> noise(Part images, Phase phase, size_t step, size_t draw,
                                     const Positions& positions, size_t channels) const = 0;
};

class SeededHimarDraws : public HimarDraws {
  public:
    // `image_index` has one entry per image of the request.
    SeededHimarDraws(uint64_t seed, std::vector<uint64_t> image_index);
    uint64_t seed() const { return seed_; }
    uint64_t image_index(size_t image) const { return image_index_[image]; }
    std::vector<int32_t> order(size_t image, Phase phase, size_t length) const override;
    std::vector<float> noise(Part images, Phase phase, size_t step, size_t draw, const Positions& positions,
                             size_t channels) const override;

  private:
    const uint64_t seed_;
    const std::vector<uint64_t> image_index_;
};

// Orders (num_images, num_pivots + num_dense) and a source of noise, for verification.
class GivenHimarDraws : public HimarDraws {
  public:
    using Noise = std::function<std::vector<float>(Part, Phase, size_t step, size_t draw, const Positions&,
                                                   size_t channels)>;

    // Throws Error where an order is no permutation.
    GivenHimarDraws(const int32_t* orders, size_t num_images, size_t num_pivots, size_t num_dense,
                    Noise noise);
    std::vector<int32_t> order(size_t image, Phase phase, size_t length) const override;
    std::vector<float> noise(Part images, Phase phase, size_t step, size_t draw, const Positions& positions,
                             size_t channels) const override;

  private:
    const int32_t* const orders_;
    const size_t num_pivots_, num_tokens_;
    const Noise noise_;
};

}  // namespace hmar::core
