#include "requests.h"

#include <cmath>
#include <numeric>

namespace hmar::core {
namespace {

[[noreturn]] void reject(const std::string& message) { throw Error(HMAR_INVALID_ARGUMENT, message); }

void check_setting(double value, double most, const char* name, const char* wanted) {
    if (!(value >= 0 && value <= most) || std::isinf(value))
        reject(text(name, " must be ", wanted, ", got ", value));
}

Schedule read_schedule(const hmar_request& request, const ModelSpec& model) {
    Schedule schedule;
    if (request.schedule_lengths == nullptr) return schedule;
    const int32_t* counts = request.schedule_counts;
    for (size_t k = 0; k < request.schedule_scales; ++k) {
        const int32_t length = request.schedule_lengths[k];
        if (length < 0 || (length > 0 && counts == nullptr)) {
            reject(text("schedule_lengths[", k, "] is ", length,
                        "; expected lengths >= 0, and schedule_counts"));
        }
        schedule.emplace_back(counts, counts + length);
        counts += length;
    }
    check_schedule(schedule, model.patch_nums.size(), HMAR_INVALID_ARGUMENT, "mask schedule");
    schedule.resize(model.patch_nums.size());
    bool has_masks = false;
    for (size_t k = 1; k < schedule.size(); ++k) has_masks = has_masks || schedule[k].size() > 1;
    if (has_masks && !model.has_mask_branch) {
        reject("this model has no masked branch; set schedule_lengths to NULL");
    }
    if (request.context == HMAR_CONTEXT_PREFIX) {
        reject("HMAR_CONTEXT_PREFIX has no masked passes; set schedule_lengths to NULL");
    }
    return schedule;
}

std::vector<int32_t> read_labels(const hmar_request& request, const ModelSpec& model) {
    if (request.labels == nullptr || request.num_images == 0) reject("labels: give one class per image");
    std::vector<int32_t> labels(request.labels, request.labels + request.num_images);
    for (int32_t& label : labels) {
        if (label != HMAR_NO_CLASS && (label < 0 || label >= model.num_classes)) {
            reject(text("label ", label, " is out of range: 0..", model.num_classes - 1,
                        ", or HMAR_NO_CLASS for unconditional"));
        }
        if (label == HMAR_NO_CLASS) label = model.num_classes;
    }
    return labels;
}

std::unique_ptr<Draws> read_draws(const hmar_request& request, const Schedule& schedule,
                                  const ModelSpec& model) {
    switch (request.draws) {
        case HMAR_DRAWS_SEED: {
            std::vector<uint64_t> index(request.num_images);
            std::iota(index.begin(), index.end(), uint64_t{0});
            if (request.image_index != nullptr)
                index.assign(request.image_index, request.image_index + index.size());
            return std::make_unique<SeededDraws>(request.seed, std::move(index));
        }
        case HMAR_DRAWS_UNIFORMS:
            return std::make_unique<GivenDraws>(request.uniforms, request.num_uniforms, model.patch_nums,
                                                schedule, request.num_images);
        case HMAR_DRAWS_ARGMAX:
            return std::make_unique<ArgmaxDraws>();
    }
    reject(text("draws is ", request.draws, ", expected an hmar_draws"));
}

KnownTokens read_known(const hmar_request& request, const ModelSpec& model) {
    if (request.known_tokens == nullptr && request.keep == nullptr) return {};
    const size_t expected = request.num_images * model.num_tokens();
    if (request.known_tokens == nullptr || request.keep == nullptr || request.num_known != expected) {
        reject(text("known_tokens and keep: expected both, with ", expected, " entries each, got ",
                    request.num_known));
    }
    for (size_t i = 0; i < expected; ++i) {
        const int32_t token = request.known_tokens[i];
        if (request.keep[i] != 0 && (token < 0 || token >= model.vocab_size)) {
            reject(text("known_tokens[", i, "] is ", token, ", expected 0..", model.vocab_size - 1));
        }
    }
    return {request.known_tokens, request.keep};
}

void call_back(const hmar_request& request, const ScaleEvent& event, size_t image_size) {
    const PreviewedEvent inner{event, event.images.count * image_size};
    const hmar_scale_event outer{
        event.scale_idx, event.pn, event.num_scales, event.images.first, event.images.count,
        event.tokens,    &inner};
    if (request.on_scale(&outer, request.user_data) != 0) {
        throw Error(HMAR_STOPPED,
                    text("the callback ended the generation after scale ", event.scale_idx, " of images ",
                         event.images.first, " to ", event.images.first + event.images.count - 1));
    }
}

}  // namespace

OpenBundle::OpenBundle(const std::string& folder, hmar_check check)
    : bundle(std::make_shared<const Bundle>(folder, check)) {
    for (const auto& entry : bundle->manifest().sampling.mask_schedule) {
        schedule_counts.insert(schedule_counts.end(), entry.begin(), entry.end());
        schedule_lengths.push_back(int32_t(entry.size()));
    }
}

hmar_request OpenBundle::defaults() const {
    const SamplingDefaults& sampling = bundle->manifest().sampling;
    hmar_request request{};
    request.struct_size = sizeof request;
    request.cfg = sampling.cfg;
    request.top_k = sampling.top_k;
    request.top_p = sampling.top_p;
    request.skip_guidance_below = 1e-5;  // as in runtime/config.py
    if (!schedule_lengths.empty()) {
        request.schedule_counts = schedule_counts.data();
        request.schedule_lengths = schedule_lengths.data();
        request.schedule_scales = schedule_lengths.size();
    }
    return request;
}

size_t image_size(const ModelSpec& model) {
    return size_t(model.image_side_px) * size_t(model.image_side_px) * 3;
}

void check_size(size_t struct_size, size_t expected, const char* name) {
    if (struct_size != expected) {
        reject(text(name, ".struct_size is ", struct_size, ", expected sizeof(", name, ") = ", expected,
                    "; set the struct up first, and compile with this library's header"));
    }
}

void check_array(const void* array, size_t size, size_t expected, const char* name) {
    if (array != nullptr && size != expected)
        reject(text(name, ": expected room for ", expected, " values, got ", size));
}

Settings read_settings(const hmar_request& request, const ModelSpec& model) {
    check_size(request.struct_size, sizeof request, "hmar_request");
    const double infinity = std::numeric_limits<double>::infinity();
    check_setting(request.cfg, infinity, "cfg", "a finite number >= 0");
    check_setting(request.top_p, 1, "top_p", "in [0, 1] (0 = off)");
    check_setting(request.skip_guidance_below, infinity, "skip_guidance_below", "a finite number >= 0");
    if (request.top_k < 0 || request.top_k > model.vocab_size) {
        reject(text("top_k must be in 0..", model.vocab_size, " (0 = off), got ", request.top_k));
    }
    if (request.context != HMAR_CONTEXT_SCALE && request.context != HMAR_CONTEXT_PREFIX) {
        reject(text("context is ", request.context, ", expected an hmar_context"));
    }
    return {request.cfg,
            request.top_p,
            request.skip_guidance_below,
            request.top_k,
            request.context == HMAR_CONTEXT_PREFIX,
            read_schedule(request, model)};
}

Request read_request(const hmar_request& request, const ModelSpec& model) {
    Request checked;
    checked.settings = read_settings(request, model);
    checked.labels = read_labels(request, model);
    checked.draws = read_draws(request, checked.settings.schedule, model);
    checked.known = read_known(request, model);
    if (request.on_scale != nullptr) {
        checked.control.on_scale = [&request, size = image_size(model)](const ScaleEvent& event) {
            call_back(request, event, size);
        };
    }
    return checked;
}

Output read_output(const hmar_output& output, const ModelSpec& model, size_t num_images) {
    check_size(output.struct_size, sizeof output, "hmar_output");
    check_array(output.pixels, output.pixels_size, num_images * image_size(model), "pixels");
    check_array(output.image, output.image_size, num_images * image_size(model), "image");
    check_array(output.tokens, output.tokens_size, num_images * model.num_tokens(), "tokens");
    return {output.pixels, output.image, output.tokens};
}

}  // namespace hmar::core
