#include "manifest.h"

#include <algorithm>
#include <array>

#include "himar_schedule.h"
#include "json_record.h"

namespace hmar::core {
namespace {

constexpr std::array<const char*, 23> kKinds = {"cond",
                                                "embed_first",
                                                "embed_ns",
                                                "embed_mask",
                                                "ns_trunk",
                                                "mask_trunk",
                                                "ns_prefix",
                                                "ns",
                                                "mask",
                                                "mask_input",
                                                "quant",
                                                "decode",
                                                "encode",
                                                "score",
                                                "pivot",
                                                "dense",
                                                "denoise_pivot",
                                                "denoise_dense",
                                                "denoise_pivot_unguided",
                                                "denoise_dense_unguided",
                                                "decode_pivot",
                                                "modulate_pivot",
                                                "denoise_pivot_modulated"};
constexpr std::array<const char*, 5> kDtypes = {"float32", "float16", "bfloat16", "int32", "bool"};
constexpr std::array<size_t, 5> kItemBytes = {4, 2, 2, 4, 1};
// far above every model there is; products of them stay far below 2^63
constexpr int64_t kMaxSize = 1 << 24, kMaxSide = 1 << 10, kMaxScales = 256, kMaxBytes = int64_t{1} << 48;

template <typename Names>
size_t index_of(const Names& names, const std::string& name) {
    return size_t(std::find(names.begin(), names.end(), name) - names.begin());
}

Dtype dtype_of(Record& record) {
    const std::string name = record.string("dtype");
    const size_t index = index_of(kDtypes, name);
    if (index == kDtypes.size())
        record.fail(text("dtype must be one of ", listed(kDtypes), ", got '", name, "'"));
    return Dtype(index);
}

// The path rules of runtime/bundle.py.
void check_path(const std::string& file, const Record& record) {
    bool leaves = file.empty() || file[0] == '/', has_part = false;
    leaves = leaves || file.find_first_of(std::string("\\\0", 2)) != std::string::npos;
    std::istringstream parts(file);
    for (std::string part; std::getline(parts, part, '/');) {
        leaves = leaves || part == "..";
        has_part = has_part || (!part.empty() && part != ".");
    }
    if (leaves || !has_part) record.fail(text("path ", Record::excerpt(file), " leaves the bundle"));
}

FileSpec read_file(Record& record) {
    FileSpec spec{record.string("file"), record.string("sha256"),
                  uint64_t(record.integer("nbytes", 0, kMaxBytes))};
    check_path(spec.file, record);
    return spec;
}

FileSpec read_file(const Json& data, const std::string& where) {
    Record record(data, where);
    FileSpec spec = read_file(record);
    record.finish();
    return spec;
}

std::vector<TensorSpec> read_tensors(Record& graph, const char* name) {
    std::vector<TensorSpec> specs;
    for (const Json& item : graph.list(name)) {
        Record record(item, text(graph.where(), ".", name));
        TensorSpec spec{record.string("name"), dtype_of(record), {}};
        for (const Json& dim : record.list("shape")) {
            spec.shape.push_back(dim.is_string() ? -1 : record.integer(dim, "shape", 0, kMaxBytes));
        }
        record.finish();
        specs.push_back(std::move(spec));
    }
    return specs;
}

GraphSpec read_graph(const Json& data, const std::string& name) {
    Record record(data, "graphs." + name);
    GraphSpec spec{name, record.string("kind"), std::nullopt, std::nullopt, read_file(record), {}, {}};
    if (index_of(kKinds, spec.kind) == kKinds.size()) record.fail(text("unknown kind '", spec.kind, "'"));
    if (const Json* scale = record.optional_field("scale_idx")) {
        spec.scale_idx = int(record.integer(*scale, "scale_idx", 0, kMaxScales));
    }
    if (const Json* step = record.optional_field("step_idx")) {
        spec.step_idx = int(record.integer(*step, "step_idx", 0, kMaxSize));
    }
    spec.inputs = read_tensors(record, "inputs");
    spec.outputs = read_tensors(record, "outputs");
    record.finish();
    return spec;
}

std::string read_preset(Record& model) {
    const Json* preset = model.optional_field("preset");
    if (preset != nullptr && !preset->is_string()) model.fail("preset must be a string or null");
    return preset == nullptr ? "" : preset->get<std::string>();
}

ModelSpec read_model(const Json& data) {
    Record record(data, "model");
    ModelSpec model{};
    model.preset = read_preset(record);
    for (const char* name : {"depth", "embed_dim", "num_heads"}) record.integer(name, 1, kMaxSize);
    record.integer("branch_layers", 0, kMaxSize);
    for (const char* name : {"shared_aln", "attn_l2_norm"}) record.boolean(name);
    model.num_classes = int32_t(record.integer("num_classes", 1, kMaxSize));
    model.vocab_size = int32_t(record.integer("vocab_size", 1, kMaxSize));
    model.latent_channels = int32_t(record.integer("latent_channels", 1, 1 << 16));
    model.image_side_px = int32_t(record.integer("image_side_px", 1, 1 << 16));
    model.has_mask_branch = record.boolean("has_mask_branch");
    for (const int64_t side : record.integers("patch_nums", 1, kMaxSide)) {
        model.patch_nums.push_back(int32_t(side));
    }
    if (model.patch_nums.size() < 2 || model.patch_nums.size() > kMaxScales) {
        record.fail(text("patch_nums must be 2..", kMaxScales, " sides, got ", model.patch_nums.size()));
    }
    record.finish();
    return model;
}

SamplingDefaults read_sampling(const Json& data, int num_scales) {
    Record record(data, "sampling");
    SamplingDefaults sampling{
        record.number("cfg"), record.number("top_p"), int32_t(record.integer("top_k", 0, kMaxSize)), {}};
    if (const Json* entries = record.optional_field("mask_schedule")) {
        if (!entries->is_array()) record.fail("mask_schedule must be a list or null");
        for (const Json& entry : *entries) {
            if (!entry.is_array()) record.fail("mask_schedule must be a list of lists");
            std::vector<int32_t>& counts = sampling.mask_schedule.emplace_back();
            for (const Json& n : entry)
                counts.push_back(int32_t(record.integer(n, "mask_schedule", 0, kMaxSize)));
        }
        check_schedule(sampling.mask_schedule, size_t(num_scales), HMAR_INVALID_BUNDLE,
                       "sampling.mask_schedule");
    }
    record.finish();
    return sampling;
}

HimarModelSpec read_himar_model(const Json& data) {
    Record record(data, "model");
    HimarModelSpec model{};
    model.preset = read_preset(record);
    for (const char* name : {"encoder_depth", "decoder_depth"}) record.integer(name, 1, kMaxSize);
    model.num_classes = int32_t(record.integer("num_classes", 0, kMaxSize));
    model.embed_dim = int32_t(record.integer("embed_dim", 1, kMaxSize));
    model.token_channels = int32_t(record.integer("token_channels", 1, 1 << 16));
    model.pivot_side = int32_t(record.integer("pivot_side", 1, kMaxSide));
    model.dense_side = int32_t(record.integer("dense_side", 1, kMaxSide));
    model.num_iter = int32_t(record.integer("num_iter", 1, kMaxSteps));
    model.image_side_px = int32_t(record.integer("image_side_px", 1, 1 << 16));
    if (record.optional_field("latent_scale") != nullptr) record.number("latent_scale");
    record.finish();
    return model;
}

HimarSamplingDefaults read_himar_sampling(const Json& data) {
    Record record(data, "sampling");
    HimarSamplingDefaults sampling{};
    sampling.num_iter = int32_t(record.integer("num_iter", 1, kMaxSteps));
    sampling.cfg = record.number("cfg");
    sampling.re_cfg = record.number("re_cfg");
    sampling.temperature = record.number("temperature");
    const std::string schedule = record.string("cfg_schedule");
    if (schedule != "linear" && schedule != "constant") {
        record.fail(text("cfg_schedule must be linear or constant, got '", schedule, "'"));
    }
    sampling.grows = schedule == "linear";
    sampling.pivot_diffusion_steps = record.string("pivot_diffusion_steps");
    sampling.dense_diffusion_steps = record.string("dense_diffusion_steps");
    record.finish();
    return sampling;
}

WeightSpec read_weight(const Json& data, const std::string& name, uint64_t weights_nbytes) {
    Record record(data, "tensors." + name);
    WeightSpec spec{dtype_of(record), record.integers("shape", 0, kMaxBytes),
                    uint64_t(record.integer("offset", 0, kMaxBytes))};
    if (spec.offset > weights_nbytes || spec.nbytes() > weights_nbytes - spec.offset) {
        record.fail("lies outside the weights file");
    }
    record.finish();
    return spec;
}

std::vector<std::pair<std::string, Json>> items(Record& manifest, const char* name) {
    const Json& data = manifest.field(name);
    if (!data.is_object()) manifest.fail(text(name, " must be an object, got ", data.type_name()));
    std::vector<std::pair<std::string, Json>> pairs;
    for (const auto& [key, value] : data.items()) pairs.emplace_back(key, value);
    return pairs;
}

void check_plugins(Record& manifest) {
    for (const Json& item : manifest.list("plugins")) {
        Record record(item, "plugins");
        for (const char* name : {"domain", "name", "version"}) record.string(name);
        record.finish();
    }
}

Manifest read_manifest(const Json& data) {
    Record record(data, "manifest");
    const Json& version = record.field("format_version");
    if (version != kFormatVersion) {
        record.fail(text("format version ", Record::excerpt(version), ", this release reads version ",
                         kFormatVersion,
                         "; export the checkpoint again or use the release that made the bundle"));
    }
    Manifest manifest;
    manifest.family = record.string("family");
    if (manifest.family != "hmar" && manifest.family != "himar") {
        record.fail(text("family is '", manifest.family, "', this release knows 'hmar' and 'himar'"));
    }
    manifest.producer = record.string("producer");
    manifest.precision = record.string("precision");
    if (manifest.precision != "fp32" && manifest.precision != "fp16" && manifest.precision != "bf16") {
        record.fail(text("precision must be fp32, fp16 or bf16, got '", manifest.precision, "'"));
    }
    record.integer("opset", 1, kMaxSize);
    if (manifest.family == "hmar") {
        const ModelSpec model = read_model(record.field("model"));
        manifest.sampling = read_sampling(record.field("sampling"), model.num_scales());
        manifest.model = model;
    } else {
        manifest.model = read_himar_model(record.field("model"));
        manifest.sampling = read_himar_sampling(record.field("sampling"));
    }
    for (const auto& [name, value] : items(record, "graphs")) {
        manifest.graphs.push_back(read_graph(value, name));
    }
    manifest.weights = read_file(record.field("weights"), "weights");
    for (const auto& [name, value] : items(record, "tensors")) {
        manifest.tensors.emplace(name, read_weight(value, name, manifest.weights.nbytes));
    }
    check_plugins(record);
    for (const Json& source : record.list("sources")) Record(source, "sources");
    if (const Json* file = record.optional_field("certificate")) {
        manifest.certificate = read_file(*file, "certificate");
    }
    if (const Json* file = record.optional_field("class_names")) {
        manifest.class_names = read_file(*file, "class_names");
    }
    record.finish();
    return manifest;
}

}  // namespace

size_t item_bytes(Dtype dtype) { return kItemBytes[size_t(dtype)]; }

const char* dtype_name(Dtype dtype) { return kDtypes[size_t(dtype)]; }

uint64_t WeightSpec::nbytes() const {
    uint64_t size = item_bytes(dtype);
    for (const int64_t dim : shape) {
        if (__builtin_mul_overflow(size, uint64_t(dim), &size)) return UINT64_MAX;
    }
    return size;
}

size_t ModelSpec::length(int scale_idx) const {
    const auto side = size_t(patch_nums[size_t(scale_idx)]);
    return side * side;
}

size_t ModelSpec::first(int scale_idx) const {
    size_t sum = 0;
    for (int k = 0; k < scale_idx; ++k) sum += length(k);
    return sum;
}

std::vector<FileSpec> Manifest::files() const {
    std::vector<FileSpec> all;
    for (const GraphSpec& graph : graphs) all.push_back(graph.file);
    all.push_back(weights);
    if (certificate) all.push_back(*certificate);
    if (class_names) all.push_back(*class_names);
    return all;
}

const ModelSpec& Manifest::hmar() const {
    if (const auto* spec = std::get_if<ModelSpec>(&model)) return *spec;
    throw Error(HMAR_UNSUPPORTED, text("this needs a bundle of HMAR; this one is of family '", family, "'"));
}

const HimarModelSpec& Manifest::himar() const {
    if (const auto* spec = std::get_if<HimarModelSpec>(&model)) return *spec;
    throw Error(HMAR_UNSUPPORTED,
                text("this needs a bundle of Hi-MAR; this one is of family '", family, "'"));
}

int32_t Manifest::num_classes() const {
    return std::visit([](const auto& spec) { return spec.num_classes; }, model);
}

int32_t Manifest::image_side_px() const {
    return std::visit([](const auto& spec) { return spec.image_side_px; }, model);
}

const GraphSpec& Manifest::graph(const std::string& kind, std::optional<int> scale_idx,
                                 std::optional<int> step_idx) const {
    for (const GraphSpec& graph : graphs) {
        if (graph.kind == kind && graph.scale_idx == scale_idx && graph.step_idx == step_idx) return graph;
    }
    std::string at = scale_idx ? text(" for scale ", *scale_idx) : "";
    if (step_idx) at += text(" for step ", *step_idx);
    throw Error(HMAR_INVALID_BUNDLE, text("the bundle has no '", kind, "' graph", at, "; export it again"));
}

Manifest parse_manifest(const std::string& json, const std::string& source) {
    const Json data = parse_json(json, source);
    try {
        return read_manifest(data);
    } catch (const Error& error) {
        throw Error(error.status, text(source, ": ", error.what()));
    }
}

std::vector<std::string> parse_class_names(const std::string& json, const std::string& source,
                                           int32_t num_classes) {
    const Json data = parse_json(json, source);
    std::vector<std::string> names;
    for (const Json& item : data) {
        if (!data.is_array() || !item.is_string() || item.get<std::string>().empty()) {
            throw Error(HMAR_INVALID_BUNDLE, text(source, ": expected a JSON list of class names"));
        }
        names.push_back(item.get<std::string>());
    }
    const size_t different = std::set<std::string>(names.begin(), names.end()).size();
    if (names.size() != size_t(num_classes) || different != names.size()) {
        throw Error(HMAR_INVALID_BUNDLE, text(source, ": expected ", num_classes, " different names, got ",
                                              names.size(), " (", different, " different)"));
    }
    return names;
}

}  // namespace hmar::core
