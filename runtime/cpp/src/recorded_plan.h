// What recordings are of, and which memory their work reads and writes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "json_record.h"
#include "manifest.h"
#include "schedule.h"

namespace hmar::core {

using Dims = std::vector<int64_t>;

// A whole generation of HMAR; what decides which work it consists of.
struct GenerationPlan {
    int32_t batch;
    Schedule schedule;  // empty = no masked passes
    std::vector<bool> is_guided;
    bool is_mask_guided;

    bool operator==(const GenerationPlan& other) const;
};

// A run of a graph of the bundle; all its tensors begin with the same number of rows.
struct GraphPlan {
    int32_t batch;
    std::string graph;
    std::map<std::string, Dims> inputs, outputs;  // shapes

    bool operator==(const GraphPlan& other) const;
};

// The sampling of a Hi-MAR step.
struct SamplingPlan {
    int32_t batch;
    std::string graph;  // of the denoiser
    size_t length;      // tokens of an image
    std::vector<int32_t> timesteps;
    bool has_held;

    bool operator==(const SamplingPlan& other) const;
};

using RecordedPlan = std::variant<GenerationPlan, GraphPlan, SamplingPlan>;

int32_t batch_of(const RecordedPlan& plan);

// Throws Error where it is none for the bundle's model and graphs.
RecordedPlan read_plan(const Json& data, const std::string& where, const Manifest& manifest);

// Bytes by name.
struct PlanMemory {
    std::map<std::string, uint64_t> inputs, outputs;
};

// Of a plan that `read_plan` returned for the same manifest.
PlanMemory memory_of(const RecordedPlan& plan, const Manifest& manifest);

// The graph of this name; null where there is none.
const GraphSpec* find_graph(const Manifest& manifest, const std::string& name);

}  // namespace hmar::core
