// Mask schedules, as runtime/schedule.py describes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hmar_runtime.h"

namespace hmar::core {

using Schedule = std::vector<std::vector<int32_t>>;  // one entry per scale; empty = no masked passes at all

// How many tokens each masked pass of one scale predicts again.
std::vector<size_t> masked_counts(const std::vector<int32_t>& entry, size_t num_tokens);

// Throws Error(status) where a schedule is too short for the scales, or holds what is no count.
void check_schedule(const Schedule& schedule, size_t num_scales, hmar_status status, const std::string& name);

}  // namespace hmar::core
