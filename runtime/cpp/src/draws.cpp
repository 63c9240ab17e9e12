#include "draws.h"

#include "error.h"
#include "philox.h"

namespace hmar::core {
namespace {

size_t num_passes(const Schedule& schedule, size_t scale_idx, size_t length) {
    return 1 + (schedule.empty() ? 0 : masked_counts(schedule[scale_idx], length).size());
}

}  // namespace

SeededDraws::SeededDraws(uint64_t seed, std::vector<uint64_t> image_index)
    : seed_(seed), image_index_(std::move(image_index)) {}

std::optional<double> SeededDraws::at(size_t image, int scale_idx, int pass_idx, size_t position) const {
    return uniform(seed_, image_index_[image], scale_idx, pass_idx, uint32_t(position));
}

GivenDraws::GivenDraws(const double* uniforms, size_t num_uniforms, const std::vector<int32_t>& patch_nums,
                       const Schedule& schedule, size_t num_images)
    : uniforms_(uniforms), num_images_(num_images) {
    const size_t wanted = count(patch_nums, schedule, num_images);
    if (uniforms == nullptr || num_uniforms != wanted) {
        throw Error(HMAR_INVALID_ARGUMENT,
                    text("uniforms: expected ", wanted, " numbers for ", num_images,
                         " images and this schedule, got ", uniforms == nullptr ? 0 : num_uniforms));
    }
    for (size_t i = 0; i < num_uniforms; ++i) {
        if (!(uniforms[i] >= 0 && uniforms[i] < 1)) {
            throw Error(HMAR_INVALID_ARGUMENT,
                        text("uniforms[", i, "] is ", uniforms[i], ", expected a number in [0, 1)"));
        }
    }
    size_t first = 0;
    for (size_t k = 0; k < patch_nums.size(); ++k) {
        const size_t length = size_t(patch_nums[k]) * size_t(patch_nums[k]);
        scales_.push_back({first, length});
        first += num_images * length * num_passes(schedule, k, length);
    }
}

std::optional<double> GivenDraws::at(size_t image, int scale_idx, int pass_idx, size_t position) const {
    const Scale& scale = scales_[size_t(scale_idx)];
    return uniforms_[scale.first + (size_t(pass_idx) * num_images_ + image) * scale.length + position];
}

size_t GivenDraws::count(const std::vector<int32_t>& patch_nums, const Schedule& schedule,
                         size_t num_images) {
    size_t per_image = 0;
    for (size_t k = 0; k < patch_nums.size(); ++k) {
        const size_t length = size_t(patch_nums[k]) * size_t(patch_nums[k]);
        per_image += length * num_passes(schedule, k, length);
    }
    return num_images * per_image;
}

}  // namespace hmar::core
