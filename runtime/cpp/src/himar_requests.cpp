#include <cmath>
#include <limits>

#include "arguments.h"
#include "low_resolution.h"
#include "requests.h"

namespace hmar::core {
namespace {

int32_t number(Phase phase) { return phase == Phase::pivot ? HMAR_HIMAR_PIVOT : HMAR_HIMAR_DENSE; }

HimarSettings read_settings(const hmar_himar_request& request) {
    check_size(request.struct_size, sizeof request, "hmar_himar_request");
    const double infinity = std::numeric_limits<double>::infinity();
    check_setting(request.cfg, infinity, "cfg", "a finite number >= 0");
    check_setting(request.re_cfg, infinity, "re_cfg", "a finite number >= 0");
    check_setting(request.temperature, infinity, "temperature", "a finite number >= 0");
    if (request.num_iter < 1 || request.num_iter > kMaxSteps) {
        reject(text("num_iter must be in 1..", kMaxSteps, ", got ", request.num_iter));
    }
    HimarSettings settings{size_t(request.num_iter),
                           request.cfg,
                           request.re_cfg,
                           request.temperature,
                           request.has_linear_cfg != 0,
                           required(request.pivot_diffusion_steps, "pivot_diffusion_steps"),
                           required(request.dense_diffusion_steps, "dense_diffusion_steps")};
    respaced_timesteps(settings.pivot_diffusion_steps);
    respaced_timesteps(settings.dense_diffusion_steps);
    return settings;
}

std::vector<float> ask_for_noise(const hmar_himar_request& request, Part images, Phase phase, size_t step,
                                 size_t draw, const Positions& positions, size_t channels) {
    std::vector<int32_t> flat;
    for (const auto& row : positions) flat.insert(flat.end(), row.begin(), row.end());
    std::vector<float> noise(flat.size() * channels);
    const hmar_himar_draw asked{number(phase), int32_t(step),       int32_t(draw), images.first,
                                images.count,  positions[0].size(), flat.data(),   noise.data()};
    if (request.noise(&asked, request.user_data) != 0) stop(text("step ", step), images);
    return noise;
}

std::unique_ptr<HimarDraws> read_draws(const hmar_himar_request& request, const HimarModelSpec& model) {
    if ((request.orders == nullptr) != (request.noise == nullptr)) {
        reject("orders and noise: give both, or neither");
    }
    if (request.orders == nullptr) {
        const auto indices = read_image_index(request.image_index, request.num_images);
        return std::make_unique<SeededHimarDraws>(request.seed, indices);
    }
    const auto noise = [&request](Part images, Phase phase, size_t step, size_t draw,
                                  const Positions& positions, size_t channels) {
        return ask_for_noise(request, images, phase, step, draw, positions, channels);
    };
    return std::make_unique<GivenHimarDraws>(request.orders, request.num_images, model.num_pivots(),
                                             model.num_dense(), noise);
}

void call_back(const hmar_himar_request& request, const StepEvent& event, size_t image_size) {
    const Preview preview{event.preview, event.images.count * image_size};
    const hmar_himar_step_event outer{number(event.phase),
                                      int32_t(event.step_idx),
                                      int32_t(event.num_steps),
                                      event.images.first,
                                      event.images.count,
                                      event.tokens,
                                      &preview};
    if (request.on_step(&outer, request.user_data) != 0) stop(text("step ", event.step_idx), event.images);
}

}  // namespace

HimarRequest read_request(const hmar_himar_request& request, const HimarModelSpec& model) {
    HimarRequest checked;
    checked.settings = read_settings(request);
    checked.num_images = request.num_images;
    if ((request.labels == nullptr) == (request.cond == nullptr)) reject("give either labels or cond");
    if (request.labels != nullptr) {
        checked.labels = read_labels(request.labels, request.num_images, model.num_classes);
    } else {
        if (request.num_images == 0) reject("cond: give one vector per image");
        for (size_t i = 0; i < request.num_images * size_t(model.embed_dim); ++i) {
            if (!std::isfinite(request.cond[i])) reject(text("cond[", i, "] is not finite"));
        }
        checked.cond = request.cond;
    }
    checked.draws = read_draws(request, model);
    if (request.on_step != nullptr) {
        checked.on_step = [&request, side = size_t(model.image_side_px)](const StepEvent& event) {
            call_back(request, event, image_size(event.phase == Phase::pivot ? kSmallSidePx : side));
        };
    }
    return checked;
}

HimarOutput read_output(const hmar_himar_output& output, const HimarModelSpec& model, size_t num_images) {
    check_size(output.struct_size, sizeof output, "hmar_himar_output");
    const size_t size = image_size(size_t(model.image_side_px)), channels = size_t(model.token_channels);
    check_array(output.pixels, output.pixels_size, num_images * size, "pixels");
    check_array(output.image, output.image_size, num_images * size, "image");
    check_array(output.small_pixels, output.small_pixels_size, num_images * image_size(kSmallSidePx),
                "small_pixels");
    check_array(output.pivots, output.pivots_size, num_images * model.num_pivots() * channels, "pivots");
    check_array(output.dense, output.dense_size, num_images * model.num_dense() * channels, "dense");
    return {output.pixels, output.image, output.small_pixels, output.pivots, output.dense};
}

}  // namespace hmar::core
