#include "gpu_runner.h"

#include <algorithm>

#include "normals.h"
#include "shared_graphs.h"

namespace hmar::core {
namespace {

constexpr const char* kNotRecorded = "no recording has these settings";
constexpr const char* kHimarDefaults =
    " (num_iter, diffusion steps, guidance); the bundle's own are recorded by scripts/build_engines.py";

// The rows of a graph's inputs.
int64_t rows_of(const GraphPlan& plan) { return plan.inputs.begin()->second.at(0); }

bool fits_inputs(const GraphPlan& plan, const GraphSpec& graph, const std::vector<Tensor>& inputs) {
    const int64_t rows = inputs[0].shape.at(0);
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Dims &recorded = plan.inputs.at(graph.inputs[i].name), &given = inputs[i].shape;
        if (recorded.size() != given.size() || recorded[0] != rows_of(plan) || given[0] != rows ||
            !std::equal(recorded.begin() + 1, recorded.end(), given.begin() + 1)) {
            return false;
        }
    }
    return rows_of(plan) >= rows;
}

// The tensor with so many rows in every one of its halves; what is not there is like the first.
Tensor padded(const Tensor& tensor, int64_t rows, int64_t halves = 1) {
    const int64_t given = tensor.shape[0] / halves;
    if (given == rows) return tensor;
    Shape shape = tensor.shape;
    shape[0] = rows * halves;
    const Tensor all = make_empty(tensor.dtype, shape);
    const size_t row = tensor.nbytes() / size_t(tensor.shape[0]);
    const auto* from = static_cast<const std::byte*>(tensor.data.get());
    auto* to = static_cast<std::byte*>(all.data.get());
    for (int64_t half = 0; half < halves; ++half, from += size_t(given) * row) {
        to = std::copy_n(from, size_t(given) * row, to);
        for (int64_t i = given; i < rows; ++i) to = std::copy_n(from, row, to);
    }
    return all;
}

std::string denoiser(Phase phase, bool is_guided) {
    return text(phase == Phase::pivot ? "denoise_pivot" : "denoise_dense", is_guided ? "" : "_unguided");
}

int64_t second_dim(const std::map<std::string, Dims>& shapes, const char* name) {
    const auto found = shapes.find(name);
    return found == shapes.end() || found->second.size() < 2 ? 0 : found->second[1];
}

}  // namespace

template <typename Plan, typename Fits>
const RecordingEntry* GpuRunner::find(Fits fits) const {
    const RecordingEntry* best = nullptr;
    for (const RecordingEntry& entry : programs_->recordings()) {
        const auto* plan = std::get_if<Plan>(&entry.plan);
        if (plan == nullptr || !fits(*plan)) continue;
        if (best == nullptr || plan->batch < batch_of(best->plan)) best = &entry;
    }
    return best;
}

size_t GpuRunner::max_batch() const {
    int32_t largest = 1;
    for (const RecordingEntry& entry : programs_->recordings()) {
        largest = std::max(largest, batch_of(entry.plan));
    }
    return size_t(largest);
}

std::string GpuRunner::refusal(const HimarRequest& request) const {
    if (dynamic_cast<const SeededHimarDraws*>(request.draws.get()) == nullptr) {
        return "samplings at once draw by a seed, not by the caller's orders and noise";
    }
    const HimarSettings& settings = request.settings;
    const HimarModelSpec& model = manifest().himar();
    const auto has_pass = [&](const char* kind, size_t step, size_t known, size_t predicted) {
        const auto own = step == 0 ? std::optional<int>(0) : std::nullopt;
        const std::string& graph = manifest().graph(kind, std::nullopt, own).name;
        return find<GraphPlan>([&](const GraphPlan& plan) {
                   return plan.graph == graph && size_t(second_dim(plan.inputs, "known")) == known &&
                          (predicted == 0 || size_t(second_dim(plan.inputs, "predicted")) == predicted);
               }) != nullptr;
    };
    const auto has_sampling = [&](Phase phase, double cfg, size_t length,
                                  const std::vector<int32_t>& timesteps) {
        const std::string& graph = manifest().graph(denoiser(phase, cfg != 1)).name;
        return find<SamplingPlan>([&](const SamplingPlan& plan) {
                   return plan.graph == graph && plan.length == length && plan.timesteps == timesteps;
               }) != nullptr;
    };
    const auto pivot = respaced_timesteps(settings.pivot_diffusion_steps),
               dense = respaced_timesteps(settings.dense_diffusion_steps);
    const size_t P = model.num_pivots(), N = model.num_dense();
    bool is_there = has_sampling(Phase::dense, settings.cfg, N, dense);
    size_t s = 0;
    for (const HimarStep& step : plan(P, model.pivot_steps(), settings.re_cfg, settings.grows)) {
        const size_t predicted = step.unknown - step.remaining;
        is_there = is_there && has_pass("pivot", s++, P - step.unknown, predicted) &&
                   has_sampling(Phase::pivot, settings.re_cfg, predicted, pivot);
    }
    s = 0;
    for (const HimarStep& step : plan(N, settings.num_iter, settings.cfg, settings.grows)) {
        is_there = is_there && has_pass("dense", s++, N - step.unknown, 0);
    }
    return is_there ? "" : text(kNotRecorded, kHimarDefaults);
}

bool GpuRunner::can_encode() const { return has(manifest().graph("encode"), 1); }

bool GpuRunner::has(const GraphSpec& graph, int rows_per_image) const {
    return find<GraphPlan>([&](const GraphPlan& plan) {
               return plan.graph == graph.name && rows_of(plan) >= int64_t(rows_per_image) * plan.batch;
           }) != nullptr;
}

std::string GpuRunner::refusal(const HmarRequest& request) const {
    const Settings& settings = request.settings;
    const ModelSpec& model = manifest().hmar();
    if (settings.sees_prefix) return "there are no recordings with HMAR_CONTEXT_PREFIX";
    const auto rows = [&](double t) { return t >= settings.skip_guidance_below ? 2 : 1; };
    bool is_there = has(manifest().graph("cond"), 2) && has(manifest().graph("decode"), 1);
    for (int k = 0; k < model.num_scales(); ++k) {
        const double t = guidance(settings.cfg, k, model.num_scales());
        is_there =
            is_there && has(manifest().graph("ns", k), rows(t)) && has(manifest().graph("quant", k), 1);
        if (settings.schedule.empty() ||
            masked_counts(settings.schedule[size_t(k)], model.length(k)).empty()) {
            continue;
        }
        is_there = is_there && has(manifest().graph("mask_input", k), 1) &&
                   has(manifest().graph("mask", k), rows(masked_guidance(settings.cfg)));
    }
    return is_there ? ""
                    : text(kNotRecorded,
                           " (other cfg or skip_guidance_below may guide other passes), or "
                           "steps were not recorded");
}

Values GpuRunner::run(const GraphSpec& graph, const Values& feeds) {
    const bool is_himar = manifest().family == "himar";  // of HMAR each scale is recorded
    if (is_himar && has_shared_graphs(graph)) return run_by_shared_graphs(*this, graph, feeds);
    return StepRunner::run(graph, feeds);
}

std::vector<Tensor> GpuRunner::run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) {
    const RecordingEntry* entry = find<GraphPlan>(
        [&](const GraphPlan& plan) { return plan.graph == graph.name && fits_inputs(plan, graph, inputs); });
    if (entry == nullptr) throw Error(HMAR_UNSUPPORTED, text("graph ", graph.name, ": ", kNotRecorded));
    const auto& plan = std::get<GraphPlan>(entry->plan);
    std::vector<Tensor> values;
    std::vector<ProgramInput> program_inputs;
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Tensor& all = values.emplace_back(padded(inputs[i], rows_of(plan)));
        program_inputs.push_back({graph.inputs[i].name, all.data.get(), all.nbytes()});
    }
    std::vector<Tensor> results;
    std::vector<ProgramOutput> outputs;
    for (const TensorSpec& spec : graph.outputs) {
        Shape shape = plan.outputs.at(spec.name);
        shape[0] = inputs[0].shape[0];
        const Tensor& result = results.emplace_back(make_empty(spec.dtype, shape));
        outputs.push_back({spec.name, result.data.get(), result.nbytes()});
    }
    programs_->run(*entry, program_inputs, outputs);
    return results;
}

std::optional<std::vector<float>> GpuRunner::denoise(const Denoising& step, const Tensor& head_cond) {
    const std::string& graph = manifest().graph(denoiser(step.phase, step.is_guided)).name;
    const size_t count = step.positions.size(), length = step.positions[0].size();
    const RecordingEntry* entry = find<SamplingPlan>([&](const SamplingPlan& plan) {
        return plan.graph == graph && plan.length == length && plan.has_held == (step.is_held != nullptr) &&
               size_t(plan.batch) >= count && plan.timesteps == step.schedule.timesteps();
    });
    if (entry == nullptr) throw Error(HMAR_UNSUPPORTED, text("graph ", graph, ": ", kNotRecorded));
    const auto batch = size_t(batch_of(entry->plan)), channels = size_t(manifest().himar().token_channels);

    // what is in rows of padding does not matter
    const Tensor cond = padded(head_cond, int64_t(batch), step.is_guided ? 2 : 1);
    std::vector<int32_t> positions(batch * length);
    std::vector<uint64_t> images(batch);
    std::vector<uint8_t> held(batch * length);
    std::vector<float> held_tokens(batch * length * channels), tokens(count * length * channels);
    for (size_t b = 0; b < count; ++b) {
        std::copy(step.positions[b].begin(), step.positions[b].end(),
                  positions.begin() + ptrdiff_t(b * length));
    }
    std::copy(step.images.begin(), step.images.end(), images.begin());
    if (step.is_held != nullptr) {
        std::copy(step.is_held->begin(), step.is_held->end(), held.begin());
        std::copy_n(step.held_tokens, tokens.size(), held_tokens.begin());
    }
    const auto scale = float(step.weight), temperature = float(step.temperature);
    const auto counter = noise_counter(step.phase, step.step_idx);
    programs_->run(*entry,
                   {{"head_cond", cond.data.get(), cond.nbytes()},
                    {"scale", &scale, sizeof scale},
                    {"held_tokens", held_tokens.data(), held_tokens.size() * sizeof(float)},
                    {"held", held.data(), held.size()},
                    {"positions", positions.data(), positions.size() * sizeof(int32_t)},
                    {"images", images.data(), images.size() * sizeof(uint64_t)},
                    {"seed", &step.seed, sizeof step.seed},
                    {"counter", &counter, sizeof counter},
                    {"temperature", &temperature, sizeof temperature}},
                   {{"tokens", tokens.data(), tokens.size() * sizeof(float)}});
    return tokens;
}

}  // namespace hmar::core
