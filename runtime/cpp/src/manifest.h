// The manifest of a bundle, as runtime/bundle.py reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "schedule.h"

namespace hmar::core {

constexpr int64_t kFormatVersion = 1;

enum class Dtype { float32, float16, bfloat16, int32, boolean };

size_t item_bytes(Dtype dtype);
const char* dtype_name(Dtype dtype);

struct TensorSpec {
    std::string name;
    Dtype dtype;
    std::vector<int64_t> shape;  // -1 = a symbolic dimension
};

struct WeightSpec {
    Dtype dtype;
    std::vector<int64_t> shape;
    uint64_t offset;  // in the weights file

    uint64_t nbytes() const;
};

// A file of the bundle, relative to its folder.
struct FileSpec {
    std::string file, sha256;
    uint64_t nbytes = 0;
};

struct GraphSpec {
    std::string name, kind;
    std::optional<int> scale_idx;
    FileSpec file;
    std::vector<TensorSpec> inputs, outputs;
};

struct ModelSpec {
    std::string preset;  // "" = none
    int32_t num_classes, vocab_size, latent_channels, image_side_px;
    std::vector<int32_t> patch_nums;
    bool has_mask_branch;

    int num_scales() const { return int(patch_nums.size()); }
    size_t length(int scale_idx) const;  // tokens of a scale
    size_t first(int scale_idx) const;   // tokens of all earlier scales
    size_t num_tokens() const { return first(num_scales()); }
};

struct SamplingDefaults {
    double cfg, top_p;
    int32_t top_k;
    Schedule mask_schedule;
};

struct Manifest {
    std::string producer, family, precision;
    ModelSpec model;
    SamplingDefaults sampling;
    std::vector<GraphSpec> graphs;
    FileSpec weights;
    std::map<std::string, WeightSpec> tensors;
    std::optional<FileSpec> certificate, class_names;

    // Every file of the bundle but the manifest itself.
    std::vector<FileSpec> files() const;

    // The graph of a kind, at a scale. Throws Error where there is none.
    const GraphSpec& graph(const std::string& kind, std::optional<int> scale_idx = std::nullopt) const;
};

// Throws Error: another version or family, unknown or missing fields, wrong types or sizes, paths that leave
// the bundle. `source` is what messages call the text.
Manifest parse_manifest(const std::string& json, const std::string& source);

// Names of classes in label order, from a JSON list of `num_classes` different names.
std::vector<std::string> parse_class_names(const std::string& json, const std::string& source,
                                           int32_t num_classes);

}  // namespace hmar::core
