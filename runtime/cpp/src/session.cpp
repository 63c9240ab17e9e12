#include "session.h"

#include <algorithm>

#include "low_resolution.h"

namespace hmar::core {

Session::Session(std::shared_ptr<const Bundle> bundle, std::unique_ptr<StepRunner> runner, size_t max_batch,
                 std::string why_not_gpu)
    : bundle_(std::move(bundle)),
      runner_(std::move(runner)),
      max_batch_(max_batch),
      why_not_gpu_(std::move(why_not_gpu)) {}

Session::Session(std::shared_ptr<const Bundle> bundle, std::shared_ptr<GpuPrograms> gpu,
                 MakeRunner make_runner, size_t max_batch)
    : bundle_(std::move(bundle)),
      gpu_(std::move(gpu)),
      generations_(std::make_unique<GpuGenerations>(gpu_, max_batch)),
      gpu_runner_(std::make_unique<GpuRunner>(bundle_, gpu_)),
      make_runner_(std::move(make_runner)),
      max_batch_(max_batch) {}

StepRunner& Session::runner(const std::string& why_not_gpu) {
    if (gpu_ == nullptr) return *runner_;
    if (!make_runner_) {
        throw Error(HMAR_UNSUPPORTED,
                    text(gpu_->name(), ": ", why_not_gpu, "; HMAR_BACKEND_AUTO runs this on ONNX Runtime"));
    }
    const std::lock_guard<std::mutex> lock(making_);
    try {
        if (runner_ == nullptr) runner_ = make_runner_();
    } catch (const Error& error) {
        throw Error(error.status, text(gpu_->name(), ": ", why_not_gpu, "; and ", error.what()));
    }
    return *runner_;
}

std::pair<StepRunner&, size_t> Session::steps_of(const std::string& refusal) {
    if (gpu_ != nullptr && refusal.empty()) {
        return {*gpu_runner_, std::min(max_batch_, gpu_runner_->max_batch())};
    }
    return {runner(refusal), max_batch_};
}

void Session::generate(const HmarRequest& request, const HmarOutput& output) {
    if (gpu_ != nullptr && generations_->refusal(request).empty()) {
        generations_->generate(request, output);
        return;
    }
    std::string refusal;
    if (gpu_ != nullptr) {
        refusal = gpu_runner_->refusal(request);
        if (!refusal.empty()) refusal = text(generations_->refusal(request), "; step by step: ", refusal);
    }
    const auto [runner, max_batch] = steps_of(refusal);
    for (const Part part : parts(request.labels.size(), max_batch)) {
        generate_part(runner, request, output, part);
    }
}

void Session::generate(const HimarRequest& request, const HimarOutput& output) {
    const auto [runner, max_batch] = steps_of(gpu_ == nullptr ? "" : gpu_runner_->refusal(request));
    for (const Part part : parts(request.num_images, max_batch)) generate_part(runner, request, output, part);
}

void Session::generate_part(StepRunner& runner, const HmarRequest& request, const HmarOutput& output,
                            Part part) {
    const ModelSpec& model = manifest().hmar();
    HmarTrajectory trajectory(runner, request, part);
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
    write_image(decode(runner, f_hat), part, output.pixels, output.image);
}

void Session::generate_part(StepRunner& runner, const HimarRequest& request, const HimarOutput& output,
                            Part part) {
    HimarTrajectory trajectory(runner, request, part);
    trajectory.run();
    const auto write = [&](const Tensor& tokens, float* into) {
        const auto size = size_t(num_items(tokens.shape));
        const auto* values = static_cast<const float*>(tokens.data.get());
        if (into != nullptr) std::copy_n(values, size, into + part.first * (size / part.count));
    };
    write(trajectory.pivots(), output.pivots);
    write(trajectory.dense(), output.dense);
    if (output.small_pixels != nullptr) {
        const std::vector<float> small = decode_pivots(runner, trajectory.pivots());
        to_uint8(small.data(), part.count, kSmallSidePx,
                 output.small_pixels + part.first * (small.size() / part.count));
    }
    if (output.pixels == nullptr && output.image == nullptr) return;
    write_image(decode_dense(runner, trajectory.dense()), part, output.pixels, output.image);
}

void Session::write_image(const Tensor& image, Part part, uint8_t* pixels, float* values) const {
    const auto side = size_t(manifest().image_side_px()), size = 3 * side * side;
    const auto* image_B3HW = static_cast<const float*>(image.data.get());
    if (values != nullptr) std::copy_n(image_B3HW, part.count * size, values + part.first * size);
    if (pixels != nullptr) to_uint8(image_B3HW, part.count, side, pixels + part.first * size);
}

void Session::encode(const uint8_t* pixels, size_t num_images, int32_t* tokens) {
    encode_to(tokens, pixels, num_images, {int64_t(manifest().hmar().num_tokens())});
}

void Session::encode(const uint8_t* pixels, size_t num_images, float* dense) {
    const HimarModelSpec& model = manifest().himar();
    encode_to(dense, pixels, num_images, {int64_t(model.num_dense()), model.token_channels});
}

template <typename T>
void Session::encode_to(T* tokens, const uint8_t* pixels, size_t num_images, const Shape& of_image) {
    const bool is_recorded = gpu_ != nullptr && gpu_runner_->can_encode();
    const auto [runner, max_batch] = steps_of(is_recorded ? "" : "no recording encodes");
    const GraphSpec& graph = manifest().graph("encode");
    const auto side = size_t(manifest().image_side_px()), area = side * side;
    for (const Part part : parts(num_images, max_batch)) {
        const Tensor image = make_tensor<float>({int64_t(part.count), 3, int64_t(side), int64_t(side)});
        auto* image_B3HW = static_cast<float*>(image.data.get());
        for (size_t b = 0; b < part.count; ++b) {
            for (size_t i = 0; i < area; ++i) {
                for (size_t c = 0; c < 3; ++c) image_B3HW[(3 * b + c) * area + i] = float(*pixels++) / 255;
            }
        }
        const Tensor encoded = runner.run_for("tokens", graph, {{"image", image}});
        Shape shape = {int64_t(part.count)};
        shape.insert(shape.end(), of_image.begin(), of_image.end());
        tokens = std::copy_n(encoded.values<T>(shape, "output tokens of encode"), num_items(shape), tokens);
    }
}

std::vector<Part> Session::parts(size_t num_images, size_t max_batch) {
    std::vector<Part> parts;
    for (size_t i = 0; i < num_images; i += max_batch) {
        parts.push_back({i, std::min(max_batch, num_images - i)});
    }
    return parts;
}

}  // namespace hmar::core
