// The manifest of a bundle, as runtime/bundle.py reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
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
    std::optional<int> scale_idx;  // HMAR's scale; none = any
    std::optional<int> step_idx;   // Hi-MAR's step of a phase; none = any but the first
    FileSpec file;
    std::vector<TensorSpec> inputs, outputs;
};

// Sizes of HMAR's transformer and tokenizer that the runtime needs.
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

// Sizes of Hi-MAR's model and autoencoder that the runtime needs.
struct HimarModelSpec {
    std::string preset;
    int32_t num_classes;  // 0 = generations are given a vector per image
    int32_t embed_dim, token_channels, pivot_side, dense_side, image_side_px;
    int32_t num_iter;  // steps of the dense phase that the bundle has graphs of their own for

    size_t num_pivots() const { return size_t(pivot_side) * size_t(pivot_side); }
    size_t num_dense() const { return size_t(dense_side) * size_t(dense_side); }
    size_t pivot_steps() const { return 4 * size_t(pivot_side); }
};

struct SamplingDefaults {
    double cfg, top_p;
    int32_t top_k;
    Schedule mask_schedule;
};

struct HimarSamplingDefaults {
    int32_t num_iter;
    double cfg, re_cfg, temperature;
    bool grows;  // the cfg schedule is "linear"
    std::string pivot_diffusion_steps, dense_diffusion_steps;
};

struct Manifest {
    std::string producer, family, precision;
    std::variant<ModelSpec, HimarModelSpec> model;
    std::variant<SamplingDefaults, HimarSamplingDefaults> sampling;
    std::vector<GraphSpec> graphs;
    FileSpec weights;
    std::map<std::string, WeightSpec> tensors;
    std::optional<FileSpec> certificate, class_names;

    // Every file of the bundle but the manifest itself.
    std::vector<FileSpec> files() const;

    // The model of a bundle of this family. Throws Error for another.
    const ModelSpec& hmar() const;
    const HimarModelSpec& himar() const;

    int32_t num_classes() const;
    int32_t image_side_px() const;

    // The graph of a kind, at a scale or step. Throws Error where there is none.
    const GraphSpec& graph(const std::string& kind, std::optional<int> scale_idx = std::nullopt,
                           std::optional<int> step_idx = std::nullopt) const;
};

// Throws Error: another version or family, unknown or missing fields, wrong types or sizes, paths that leave
// the bundle. `source` is what messages call the text.
Manifest parse_manifest(const std::string& json, const std::string& source);

// Names of classes in label order, from a JSON list of `num_classes` different names.
std::vector<std::string> parse_class_names(const std::string& json, const std::string& source,
                                           int32_t num_classes);

}  // namespace hmar::core
