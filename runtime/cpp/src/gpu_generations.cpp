#include "gpu_generations.h"

#include <algorithm>

namespace hmar::core {
namespace {

// The work of a generation, as far as its plan decides it; plans that differ otherwise are equal.
struct PlannedWork {
    std::vector<bool> is_guided;                     // the next-scale pass of every scale
    std::vector<std::vector<size_t>> masked_counts;  // of every scale
    bool is_mask_guided;                             // false where there are no masked passes

    bool operator==(const PlannedWork& other) const {
        return is_guided == other.is_guided && masked_counts == other.masked_counts &&
               is_mask_guided == other.is_mask_guided;
    }
};

PlannedWork make_work(std::vector<bool> is_guided, const Schedule& schedule, bool is_mask_guided,
                      const ModelSpec& model) {
    PlannedWork work{std::move(is_guided), {}, false};
    for (int k = 0; k < model.num_scales(); ++k) {
        work.masked_counts.push_back(schedule.empty() ? std::vector<size_t>()
                                                      : masked_counts(schedule[size_t(k)], model.length(k)));
        if (!work.masked_counts.back().empty()) work.is_mask_guided = is_mask_guided;
    }
    return work;
}

PlannedWork planned_work(const Settings& settings, const ModelSpec& model) {
    std::vector<bool> is_guided;
    for (int k = 0; k < model.num_scales(); ++k) {
        is_guided.push_back(guidance(settings.cfg, k, model.num_scales()) >= settings.skip_guidance_below);
    }
    const bool is_mask_guided = masked_guidance(settings.cfg) >= settings.skip_guidance_below;
    return make_work(std::move(is_guided), settings.schedule, is_mask_guided, model);
}

}  // namespace

std::vector<const RecordingEntry*> GpuGenerations::recordings(const HmarRequest& request) const {
    const ModelSpec& model = programs_->bundle().manifest().hmar();
    const PlannedWork work = planned_work(request.settings, model);
    std::vector<const RecordingEntry*> found;
    for (const RecordingEntry& entry : programs_->recordings()) {
        const auto* plan = std::get_if<GenerationPlan>(&entry.plan);
        if (plan != nullptr &&
            make_work(plan->is_guided, plan->schedule, plan->is_mask_guided, model) == work) {
            found.push_back(&entry);
        }
    }
    std::sort(found.begin(), found.end(),
              [](const auto* a, const auto* b) { return batch_of(a->plan) < batch_of(b->plan); });
    const auto last = std::find_if(found.begin(), found.end(), [&](const auto* entry) {
        return size_t(batch_of(entry->plan)) >= max_batch_;
    });
    if (last != found.end()) found.erase(last + 1, found.end());
    return found;
}

std::string GpuGenerations::refusal(const HmarRequest& request) const {
    if (request.on_scale) return "a generation at once calls nothing back after a scale";
    if (request.known.tokens != nullptr) return "a generation at once keeps no known tokens";
    if (request.settings.sees_prefix) return "there are no recordings with HMAR_CONTEXT_PREFIX";
    if (dynamic_cast<const SeededDraws*>(request.draws.get()) == nullptr) {
        return "a generation at once draws by its seed alone (HMAR_DRAWS_SEED)";
    }
    if (recordings(request).empty()) {
        return "no recording has this mask schedule and these guided passes (other cfg or "
               "skip_guidance_below "
               "may guide others); record it with scripts/build_engines.py --record-schedules";
    }
    return "";
}

void GpuGenerations::generate(const HmarRequest& request, const HmarOutput& output) {
    const std::vector<const RecordingEntry*> fitting = recordings(request);
    const size_t largest = std::min(max_batch_, size_t(batch_of(fitting.back()->plan)));
    const size_t num_images = request.labels.size();
    for (size_t first = 0; first < num_images; first += largest) {
        const Part part{first, std::min(largest, num_images - first)};
        check_cancelled(request.cancelled, part);
        const auto* entry = *std::find_if(fitting.begin(), fitting.end(), [&](const auto* entry) {
            return size_t(batch_of(entry->plan)) >= part.count;
        });
        generate_part(*entry, request, output, part);
    }
}

void GpuGenerations::generate_part(const RecordingEntry& entry, const HmarRequest& request,
                                   const HmarOutput& output, Part part) {
    const ModelSpec& model = programs_->bundle().manifest().hmar();
    const auto& draws = dynamic_cast<const SeededDraws&>(*request.draws);
    const auto batch = size_t(batch_of(entry.plan));
    // rows of padding, and the second half, are unconditional
    std::vector<int32_t> labels(2 * batch, model.num_classes);
    std::copy_n(request.labels.begin() + ptrdiff_t(part.first), part.count, labels.begin());
    std::vector<uint64_t> images(batch, 0);
    for (size_t i = 0; i < part.count; ++i) images[i] = draws.image_index(part.first + i);
    const uint64_t seed = draws.seed();
    const double settings[] = {request.settings.cfg, double(request.settings.top_k), request.settings.top_p};

    // the first rows are those of the images
    const auto side = size_t(model.image_side_px), size = 3 * side * side;
    std::vector<ProgramOutput> outputs;
    if (output.pixels != nullptr) {
        outputs.push_back({"pixels", output.pixels + part.first * size, part.count * size});
    }
    if (output.image != nullptr) {
        outputs.push_back({"image", output.image + part.first * size, part.count * size * sizeof(float)});
    }
    std::vector<std::vector<int32_t>> tokens;
    for (int k = 0; k < model.num_scales() && output.tokens != nullptr; ++k) {
        std::vector<int32_t>& of_scale = tokens.emplace_back(part.count * model.length(k));
        outputs.push_back({text("s", k, "_tokens"), of_scale.data(), of_scale.size() * sizeof(int32_t)});
    }
    programs_->run(entry,
                   {{"labels", labels.data(), labels.size() * sizeof(int32_t)},
                    {"images", images.data(), images.size() * sizeof(uint64_t)},
                    {"seed", &seed, sizeof seed},
                    {"settings", settings, sizeof settings}},
                   outputs);
    for (size_t k = 0; k < tokens.size(); ++k) {
        const size_t length = model.length(int(k));
        for (size_t b = 0; b < part.count; ++b) {
            std::copy_n(tokens[k].begin() + ptrdiff_t(b * length), length,
                        output.tokens + (part.first + b) * model.num_tokens() + model.first(int(k)));
        }
    }
}

}  // namespace hmar::core
