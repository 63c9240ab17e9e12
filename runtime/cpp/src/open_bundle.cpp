#include "open_bundle.h"

namespace hmar::core {
namespace {

constexpr double kSkipGuidanceBelow = 1e-5;  // as in runtime/config.py

void describe(const ModelSpec& model, hmar_bundle_info& info) {
    info.num_tokens = int32_t(model.num_tokens());
    info.vocab_size = model.vocab_size;
    info.num_scales = model.num_scales();
    info.patch_nums = model.patch_nums.data();
    info.has_mask_branch = model.has_mask_branch;
}

void describe(const HimarModelSpec& model, hmar_bundle_info& info) {
    info.num_tokens = int32_t(model.num_pivots() + model.num_dense());
    info.embed_dim = model.embed_dim;
    info.token_channels = model.token_channels;
    info.pivot_side = model.pivot_side;
    info.dense_side = model.dense_side;
}

}  // namespace

OpenBundle::OpenBundle(const std::string& folder, int32_t check)
    : bundle_(std::make_shared<const Bundle>(folder, hmar_check(check))) {
    const auto* sampling = std::get_if<SamplingDefaults>(&bundle_->manifest().sampling);
    if (sampling == nullptr) return;
    for (const auto& entry : sampling->mask_schedule) {
        schedule_counts_.insert(schedule_counts_.end(), entry.begin(), entry.end());
        schedule_lengths_.push_back(int32_t(entry.size()));
    }
}

hmar_bundle_info OpenBundle::info() const {
    const Manifest& manifest = bundle_->manifest();
    hmar_bundle_info info{};
    info.family = manifest.family.c_str();
    info.precision = manifest.precision.c_str();
    info.producer = manifest.producer.c_str();
    std::visit(
        [&](const auto& model) {
            info.preset = model.preset.c_str();
            info.num_classes = model.num_classes;
            info.image_side_px = model.image_side_px;
            describe(model, info);
        },
        manifest.model);
    return info;
}

hmar_request OpenBundle::defaults() const {
    bundle_->manifest().hmar();
    const auto& sampling = std::get<SamplingDefaults>(bundle_->manifest().sampling);
    hmar_request request{};
    request.struct_size = sizeof request;
    request.cfg = sampling.cfg;
    request.top_k = sampling.top_k;
    request.top_p = sampling.top_p;
    request.skip_guidance_below = kSkipGuidanceBelow;
    if (!schedule_lengths_.empty()) {
        request.schedule_counts = schedule_counts_.data();
        request.schedule_lengths = schedule_lengths_.data();
        request.schedule_scales = schedule_lengths_.size();
    }
    return request;
}

hmar_himar_request OpenBundle::himar_defaults() const {
    bundle_->manifest().himar();
    const auto& sampling = std::get<HimarSamplingDefaults>(bundle_->manifest().sampling);
    hmar_himar_request request{};
    request.struct_size = sizeof request;
    request.num_iter = sampling.num_iter;
    request.cfg = sampling.cfg;
    request.re_cfg = sampling.re_cfg;
    request.has_linear_cfg = sampling.grows;
    request.temperature = sampling.temperature;
    request.pivot_diffusion_steps = sampling.pivot_diffusion_steps.c_str();
    request.dense_diffusion_steps = sampling.dense_diffusion_steps.c_str();
    return request;
}

}  // namespace hmar::core
