// Where the randomness of a generation comes from: seeds, given uniforms, or none at all.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "schedule.h"

namespace hmar::core {

class Draws {
  public:
    virtual ~Draws() = default;

    // The uniform number of a token of an image of the request; none = take the most probable token.
    virtual std::optional<double> at(size_t image, int scale_idx, int pass_idx, size_t position) const = 0;
};

class SeededDraws : public Draws {
  public:
    // `image_index` has one entry per image of the request.
    SeededDraws(uint64_t seed, std::vector<uint64_t> image_index);
    std::optional<double> at(size_t image, int scale_idx, int pass_idx, size_t position) const override;

    uint64_t seed() const { return seed_; }
    uint64_t image_index(size_t image) const { return image_index_[image]; }

  private:
    const uint64_t seed_;
    const std::vector<uint64_t> image_index_;
};

class ArgmaxDraws : public Draws {
  public:
    std::optional<double> at(size_t, int, int, size_t) const override { return std::nullopt; }
};

// Uniforms for every pass in order of running, each (num_images, pn * pn).
class GivenDraws : public Draws {
  public:
    // Throws Error where the number of uniforms is not what `count` says, or one is outside [0, 1).
    GivenDraws(const double* uniforms, size_t num_uniforms, const std::vector<int32_t>& patch_nums,
               const Schedule& schedule, size_t num_images);
    std::optional<double> at(size_t image, int scale_idx, int pass_idx, size_t position) const override;

    static size_t count(const std::vector<int32_t>& patch_nums, const Schedule& schedule, size_t num_images);

  private:
    struct Scale {
        size_t first, length;  // of its first pass in the array; its tokens
    };

    const double* const uniforms_;
    const size_t num_images_;
    std::vector<Scale> scales_;
};

}  // namespace hmar::core
