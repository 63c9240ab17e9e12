#include <limits>

#include "arguments.h"
#include "requests.h"

namespace hmar::core {
namespace {

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

std::unique_ptr<Draws> read_draws(const hmar_request& request, const Schedule& schedule,
                                  const ModelSpec& model) {
    switch (request.draws) {
        case HMAR_DRAWS_SEED:
            return std::make_unique<SeededDraws>(request.seed,
                                                 read_image_index(request.image_index, request.num_images));
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
    const Preview preview{event.preview, event.images.count * image_size};
    const hmar_scale_event outer{event.scale_idx,    event.pn,     event.num_scales, event.images.first,
                                 event.images.count, event.tokens, &preview};
    if (request.on_scale(&outer, request.user_data) != 0) stop(text("scale ", event.scale_idx), event.images);
}

}  // namespace

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

HmarRequest read_request(const hmar_request& request, const ModelSpec& model) {
    HmarRequest checked;
    checked.settings = read_settings(request, model);
    checked.labels = read_labels(request.labels, request.num_images, model.num_classes);
    checked.draws = read_draws(request, checked.settings.schedule, model);
    checked.known = read_known(request, model);
    if (request.on_scale != nullptr) {
        checked.on_scale = [&request, size = image_size(size_t(model.image_side_px))](
                               const ScaleEvent& event) { call_back(request, event, size); };
    }
    return checked;
}

HmarOutput read_output(const hmar_output& output, const ModelSpec& model, size_t num_images) {
    check_size(output.struct_size, sizeof output, "hmar_output");
    const size_t size = image_size(size_t(model.image_side_px));
    check_array(output.pixels, output.pixels_size, num_images * size, "pixels");
    check_array(output.image, output.image_size, num_images * size, "image");
    check_array(output.tokens, output.tokens_size, num_images * model.num_tokens(), "tokens");
    return {output.pixels, output.image, output.tokens};
}

}  // namespace hmar::core
