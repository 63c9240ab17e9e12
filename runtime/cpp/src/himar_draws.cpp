#include "himar_draws.h"

#include <algorithm>

#include "error.h"
#include "normals.h"

namespace hmar::core {

SeededHimarDraws::SeededHimarDraws(uint64_t seed, std::vector<uint64_t> image_index)
    : seed_(seed), image_index_(std::move(image_index)) {}

std::vector<int32_t> SeededHimarDraws::order(size_t image, Phase phase, size_t length) const {
    return hmar::core::order(seed_, image_index_[image], phase, length);
}

std::vector<float> SeededHimarDraws::noise(Part images, Phase phase, size_t step, size_t draw,
                                           const Positions& positions, size_t channels) const {
    std::vector<float> all;
    for (size_t b = 0; b < images.count; ++b) {
        const uint64_t index = image_index_[images.first + b];
        const std::vector<float> values = normals(seed_, index, phase, step, draw, positions[b], channels);
        all.insert(all.end(), values.begin(), values.end());
    }
    return all;
}

GivenHimarDraws::GivenHimarDraws(const int32_t* orders, size_t num_images, size_t num_pivots,
                                 size_t num_dense, Noise noise)
    : orders_(orders),
      num_pivots_(num_pivots),
      num_tokens_(num_pivots + num_dense),
      noise_(std::move(noise)) {
    for (size_t image = 0; image < num_images; ++image) {
        for (const Phase phase : {Phase::pivot, Phase::dense}) {
            std::vector<int32_t> sorted = order(image, phase, phase == Phase::pivot ? num_pivots : num_dense);
            std::sort(sorted.begin(), sorted.end());
            for (size_t i = 0; i < sorted.size(); ++i) {
                if (sorted[i] != int32_t(i)) {
                    throw Error(HMAR_INVALID_ARGUMENT,
                                text("orders: those of image ", image,
                                     " are no permutations of the two grids' positions"));
                }
            }
        }
    }
}

std::vector<int32_t> GivenHimarDraws::order(size_t image, Phase phase, size_t length) const {
    const int32_t* first = orders_ + image * num_tokens_ + (phase == Phase::pivot ? 0 : num_pivots_);
    return {first, first + length};
}

std::vector<float> GivenHimarDraws::noise(Part images, Phase phase, size_t step, size_t draw,
                                          const Positions& positions, size_t channels) const {
    return noise_(images, phase, step, draw, positions, channels);
}

}  // namespace hmar::core
