#include "normals.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "philox.h"

namespace hmar::core {
namespace {

constexpr size_t kWords = 4, kMaxDraws = 1024;

// Streams 0 and 1 are the noise of the phases, 2 and 3 their orders.
uint32_t second_word(uint32_t stream, size_t step, size_t draw) {
    return (stream << 28) + uint32_t(kMaxDraws * step + draw);
}

}  // namespace

uint32_t noise_counter(Phase phase, size_t step) {
    return second_word(phase == Phase::pivot ? 0 : 1, step, 0);
}

std::vector<float> normals(uint64_t seed, uint64_t image_index, Phase phase, size_t step, size_t draw,
                           const std::vector<int32_t>& positions_n, size_t channels) {
    const uint32_t second = noise_counter(phase, step) + uint32_t(draw);
    const size_t per_token = (channels + kWords - 1) / kWords;
    std::vector<float> values;
    values.reserve(positions_n.size() * channels);
    for (const int32_t position : positions_n) {
        for (size_t block = 0; block < per_token; ++block) {
            const auto place = uint32_t(size_t(position) * per_token + block);
            const Words words = philox_block(seed, image_index, second, place);
            const auto u = [&](size_t i) { return (words[i] + 0.5) * 0x1p-32; };
            for (size_t c = 0; c < std::min(kWords, channels - kWords * block); ++c) {
                // Box and Muller's rule turns two words into two numbers
                const double radius = std::sqrt(-2 * std::log(u(c / 2 * 2))),
                             angle = 2 * M_PI * u(c / 2 * 2 + 1);
                values.push_back(float(radius * (c % 2 == 0 ? std::cos(angle) : std::sin(angle))));
            }
        }
    }
    return values;
}

std::vector<int32_t> order(uint64_t seed, uint64_t image_index, Phase phase, size_t length) {
    const uint32_t second = second_word(phase == Phase::pivot ? 2 : 3, 0, 0);
    std::vector<double> keys;
    for (size_t i = 0; i < length; ++i) {
        keys.push_back(unit_interval(philox_block(seed, image_index, second, uint32_t(i))));
    }
    std::vector<int32_t> positions(length);
    std::iota(positions.begin(), positions.end(), 0);
    std::stable_sort(positions.begin(), positions.end(),
                     [&](int32_t a, int32_t b) { return keys[size_t(a)] < keys[size_t(b)]; });
    return positions;
}

}  // namespace hmar::core
