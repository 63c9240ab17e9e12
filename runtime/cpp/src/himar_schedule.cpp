#include "himar_schedule.h"

#include <algorithm>
#include <cmath>

namespace hmar::core {

std::vector<HimarStep> plan(size_t num_tokens, size_t num_steps, double cfg, bool grows) {
    std::vector<HimarStep> steps;
    const auto tokens = double(num_tokens);
    double unknown = tokens;
    for (size_t k = 1; k <= num_steps; ++k) {
        const double cosine = std::floor(tokens * std::cos(M_PI / 2 * double(k) / double(num_steps)));
        const double masked = std::max(1.0, std::min(unknown - 1, cosine));
        const double growth = grows ? (tokens - masked) / tokens : 1.0;
        steps.push_back({size_t(unknown), k == num_steps ? 0 : size_t(masked), 1 + (cfg - 1) * growth});
        unknown = masked;
    }
    return steps;
}

}  // namespace hmar::core
