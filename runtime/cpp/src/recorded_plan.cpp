#include "recorded_plan.h"

#include <algorithm>

namespace hmar::core {
namespace {

constexpr int64_t kMaxBatch = 1 << 16, kMaxCount = 1 << 24, kMaxItems = int64_t{1} << 40;
constexpr int64_t kMaxTimesteps = 1000;

uint64_t nbytes_of(Dtype dtype, const Dims& shape) {
    uint64_t nbytes = item_bytes(dtype);
    for (const int64_t dim : shape) nbytes *= uint64_t(dim);
    return nbytes;
}

const TensorSpec* find_tensor(const std::vector<TensorSpec>& specs, const std::string& name) {
    const auto found =
        std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == name; });
    return found == specs.end() ? nullptr : &*found;
}

int32_t read_batch(Record& record) { return int32_t(record.integer("batch", 1, kMaxBatch)); }

GenerationPlan read_generation(Record& record, const ModelSpec& model) {
    GenerationPlan plan{read_batch(record), {}, {}, record.boolean("is_mask_guided")};
    if (const Json* schedule = record.optional_field("schedule")) {
        if (!schedule->is_array()) record.fail("schedule must be a list or null");
        for (const Json& entry : *schedule) {
            if (!entry.is_array()) record.fail("schedule must be a list of lists");
            std::vector<int32_t>& counts = plan.schedule.emplace_back();
            for (const Json& n : entry) {
                counts.push_back(int32_t(record.integer(n, "schedule", 0, kMaxCount)));
            }
        }
        check_schedule(plan.schedule, size_t(model.num_scales()), HMAR_INVALID_BUNDLE,
                       record.where() + ".schedule");
    }
    for (const Json& item : record.list("is_guided")) {
        if (!item.is_boolean()) record.fail("is_guided must hold true or false");
        plan.is_guided.push_back(item.get<bool>());
    }
    if (plan.is_guided.size() != size_t(model.num_scales())) {
        record.fail(text("is_guided has ", plan.is_guided.size(), " entries, the model has ",
                         model.num_scales(), " scales"));
    }
    return plan;
}

const GraphSpec& read_graph(Record& record, const Manifest& manifest) {
    const std::string name = record.string("graph");
    const GraphSpec* graph = find_graph(manifest, name);
    if (graph == nullptr) record.fail(text("the bundle has no graph '", name, "'"));
    return *graph;
}

// Shapes of exactly the tensors of a graph.
std::map<std::string, Dims> read_shapes(Record& record, const char* name,
                                        const std::vector<TensorSpec>& specs) {
    const Json& data = record.field(name);
    if (!data.is_object()) record.fail(text(name, " must be an object, got ", data.type_name()));
    std::map<std::string, Dims> shapes;
    for (const auto& [tensor, dims] : data.items()) {
        const TensorSpec* spec = find_tensor(specs, tensor);
        if (spec == nullptr || !dims.is_array() || dims.size() != spec->shape.size()) {
            record.fail(text(name, ".", tensor, " is no tensor of the graph of ", Record::excerpt(dims)));
        }
        int64_t items = 1;
        for (size_t i = 0; i < dims.size(); ++i) {
            const int64_t dim = record.integer(dims[i], name, 1, kMaxCount);
            if (spec->shape[i] >= 0 && dim != spec->shape[i]) {
                record.fail(text(name, ".", tensor, " is ", Record::excerpt(dims), ", the graph's is ",
                                 listed(spec->shape)));
            }
            items *= dim;  // of two numbers below 2^40 and 2^24
            if (items > kMaxItems) record.fail(text(name, ".", tensor, " is too large"));
            shapes[tensor].push_back(dim);
        }
    }
    if (shapes.size() != specs.size()) record.fail(text(name, " are not all of the graph's"));
    return shapes;
}

GraphPlan read_graph_plan(Record& record, const Manifest& manifest) {
    const GraphSpec& graph = read_graph(record, manifest);
    GraphPlan plan{read_batch(record), graph.name, read_shapes(record, "inputs", graph.inputs),
                   read_shapes(record, "outputs", graph.outputs)};
    // what runs it gives and takes the first rows
    if (plan.inputs.empty()) record.fail("a graph without inputs");
    const Dims& first = plan.inputs.begin()->second;
    for (const auto* shapes : {&plan.inputs, &plan.outputs}) {
        for (const auto& [name, shape] : *shapes) {
            if (shape.empty() || first.empty() || shape[0] != first[0]) {
                record.fail(text(name, " has other rows (", listed(shape), ") than ", listed(first)));
            }
        }
    }
    return plan;
}

SamplingPlan read_sampling(Record& record, const Manifest& manifest) {
    const GraphSpec& graph = read_graph(record, manifest);
    const TensorSpec* cond = find_tensor(graph.inputs, "head_cond");
    if (cond == nullptr || cond->shape.size() != 3 || cond->shape[2] < 1) {
        record.fail(text("graph ", graph.name, " is of no denoiser"));
    }
    SamplingPlan plan{read_batch(record),
                      graph.name,
                      size_t(record.integer("length", 1, int64_t(manifest.himar().num_dense()))),
                      {},
                      record.boolean("has_held")};
    for (const int64_t t : record.integers("timesteps", 0, kMaxTimesteps - 1)) {
        plan.timesteps.push_back(int32_t(t));
    }
    if (plan.timesteps.size() > size_t(kMaxTimesteps)) record.fail("too many timesteps");
    return plan;
}

PlanMemory memory_of_plan(const GenerationPlan& plan, const Manifest& manifest) {
    const ModelSpec& model = manifest.hmar();
    const auto B = uint64_t(plan.batch), side = uint64_t(model.image_side_px);
    PlanMemory memory;
    memory.inputs = {{"labels", 2 * B * sizeof(int32_t)},
                     {"images", B * sizeof(uint64_t)},
                     {"seed", sizeof(uint64_t)},
                     {"settings", 3 * sizeof(double)}};
    memory.outputs = {{"pixels", B * side * side * 3}, {"image", B * side * side * 3 * sizeof(float)}};
    for (int k = 0; k < model.num_scales(); ++k) {
        memory.outputs[text("s", k, "_tokens")] = B * model.length(k) * sizeof(int32_t);
    }
    return memory;
}

PlanMemory memory_of_plan(const GraphPlan& plan, const Manifest& manifest) {
    const GraphSpec& graph = *find_graph(manifest, plan.graph);
    PlanMemory memory;
    for (const TensorSpec& spec : graph.inputs) {
        memory.inputs[spec.name] = nbytes_of(spec.dtype, plan.inputs.at(spec.name));
    }
    for (const TensorSpec& spec : graph.outputs) {
        memory.outputs[spec.name] = nbytes_of(spec.dtype, plan.outputs.at(spec.name));
    }
    return memory;
}

PlanMemory memory_of_plan(const SamplingPlan& plan, const Manifest& manifest) {
    const GraphSpec& graph = *find_graph(manifest, plan.graph);
    const auto B = uint64_t(plan.batch), tokens = B * plan.length;
    const uint64_t values = tokens * uint64_t(manifest.himar().token_channels) * sizeof(float);
    const TensorSpec& cond = *find_tensor(graph.inputs, "head_cond");
    const uint64_t halves = find_tensor(graph.inputs, "scale") != nullptr ? 2 : 1;
    PlanMemory memory;
    memory.inputs = {{"head_cond", halves * tokens * nbytes_of(cond.dtype, {cond.shape[2]})},
                     {"scale", sizeof(float)},
                     {"held_tokens", values},
                     {"held", tokens},
                     {"positions", tokens * sizeof(int32_t)},
                     {"images", B * sizeof(uint64_t)},
                     {"seed", sizeof(uint64_t)},
                     {"counter", sizeof(int32_t)},
                     {"temperature", sizeof(float)}};
    memory.outputs = {{"tokens", values}};
    return memory;
}

}  // namespace

bool GenerationPlan::operator==(const GenerationPlan& other) const {
    return batch == other.batch && schedule == other.schedule && is_guided == other.is_guided &&
           is_mask_guided == other.is_mask_guided;
}

bool GraphPlan::operator==(const GraphPlan& other) const {
    return batch == other.batch && graph == other.graph && inputs == other.inputs && outputs == other.outputs;
}

bool SamplingPlan::operator==(const SamplingPlan& other) const {
    return batch == other.batch && graph == other.graph && length == other.length &&
           timesteps == other.timesteps && has_held == other.has_held;
}

int32_t batch_of(const RecordedPlan& plan) {
    return std::visit([](const auto& of) { return of.batch; }, plan);
}

RecordedPlan read_plan(const Json& data, const std::string& where, const Manifest& manifest) {
    Record record(data, where);
    const std::string of = record.string("of");
    RecordedPlan plan;
    if (of == "generation") {
        plan = read_generation(record, manifest.hmar());
    } else if (of == "graph") {
        plan = read_graph_plan(record, manifest);
    } else if (of == "sampling") {
        plan = read_sampling(record, manifest);
    } else {
        record.fail(text("of '", of, "', expected generation, graph or sampling"));
    }
    record.finish();
    return plan;
}

PlanMemory memory_of(const RecordedPlan& plan, const Manifest& manifest) {
    return std::visit([&](const auto& of) { return memory_of_plan(of, manifest); }, plan);
}

const GraphSpec* find_graph(const Manifest& manifest, const std::string& name) {
    const auto found = std::find_if(manifest.graphs.begin(), manifest.graphs.end(),
                                    [&](const GraphSpec& graph) { return graph.name == name; });
    return found == manifest.graphs.end() ? nullptr : &*found;
}

}  // namespace hmar::core
