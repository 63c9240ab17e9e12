#include "schedule.h"

#include <algorithm>

#include "error.h"
#include "philox.h"

namespace hmar::core {

std::vector<size_t> masked_counts(const std::vector<int32_t>& entry, size_t num_tokens) {
    std::vector<size_t> counts;
    if (num_tokens == 1) return counts;
    size_t sum = 0;
    for (size_t j = entry.size(); j-- > 1;) {
        sum += size_t(entry[j]);
        counts.push_back(std::min(sum, num_tokens));
    }
    std::reverse(counts.begin(), counts.end());
    return counts;
}

void check_schedule(const Schedule& schedule, size_t num_scales, hmar_status status,
                    const std::string& name) {
    if (schedule.size() < num_scales) {
        throw Error(status, text(name, " has ", schedule.size(), " entries, the model has ", num_scales,
                                 " scales; give one list of token counts per scale"));
    }
    for (size_t k = 0; k < num_scales; ++k) {
        const std::vector<int32_t>& entry = schedule[k];
        if (entry.size() > size_t{kMaxPasses}) {
            throw Error(status, text(name, "[", k, "] has ", entry.size() - 1, " masked passes, at most ",
                                     kMaxPasses - 1, " are allowed"));
        }
        for (const int32_t count : entry) {
            if (count < 0) {
                throw Error(status, text(name, "[", k, "] must hold token counts >= 0, got ", count));
            }
        }
    }
}

}  // namespace hmar::core
