#include "session.h"

#include <algorithm>

namespace hmar::core {

Session::Session(std::unique_ptr<StepRunner> runner, size_t max_batch)
    : runner_(std::move(runner)), max_batch_(max_batch) {}

void Session::generate(const Request& request, const Output& output) {
    for (const Part part : parts(request.labels.size())) generate_part(request, output, part);
}

void Session::generate_part(const Request& request, const Output& output, Part part) {
    const ModelSpec& model = manifest().model;
    HmarTrajectory trajectory(*runner_, request, part);
    const Tensor f_hat = trajectory.run();
    if (output.tokens != nullptr) {
        int32_t* to = output.tokens + part.first * model.num_tokens();
        for (size_t b = 0; b < part.count; ++b) {
            for (int k = 0; k < model.num_scales(); ++k) {
                const auto* tokens = static_cast<const int32_t*>(trajectory.tokens()[size_t(k)].data.get());
                to = std::copy_n(tokens + b * model.length(k), model.length(k), to);
            }
        }
    }
    if (output.pixels == nullptr && output.image == nullptr) return;
    const Tensor image = decode(*runner_, f_hat);
    const auto* values = static_cast<const float*>(image.data.get());
    const auto side = size_t(model.image_side_px), size = 3 * side * side;
    if (output.image != nullptr) std::copy_n(values, part.count * size, output.image + part.first * size);
    if (output.pixels != nullptr) to_uint8(values, part.count, side, output.pixels + part.first * size);
}

void Session::encode(const uint8_t* pixels, size_t num_images, int32_t* tokens) {
    const GraphSpec& graph = manifest().graph("encode");
    const auto side = size_t(manifest().model.image_side_px), area = side * side;
    const auto num_tokens = int64_t(manifest().model.num_tokens());
    for (const Part part : parts(num_images)) {
        const Tensor image = make_tensor<float>({int64_t(part.count), 3, int64_t(side), int64_t(side)});
        auto* image_B3HW = static_cast<float*>(image.data.get());
        for (size_t b = 0; b < part.count; ++b) {
            for (size_t i = 0; i < area; ++i) {
                for (size_t c = 0; c < 3; ++c) image_B3HW[(3 * b + c) * area + i] = float(*pixels++) / 255;
            }
        }
        const Tensor encoded = runner_->run_for("tokens", graph, {{"image", image}});
        const Shape shape = {int64_t(part.count), num_tokens};
        tokens =
            std::copy_n(encoded.values<int32_t>(shape, "output tokens of encode"), num_items(shape), tokens);
    }
}

std::vector<Part> Session::parts(size_t num_images) const {
    std::vector<Part> parts;
    for (size_t i = 0; i < num_images; i += max_batch_)
        parts.push_back({i, std::min(max_batch_, num_images - i)});
    return parts;
}

}  // namespace hmar::core
