// A bundle on a backend: generation and encoding of any number of images.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gpu_generations.h"
#include "gpu_runner.h"

namespace hmar::core {

// Where results go; null = not wanted.
struct HimarOutput {
    uint8_t* pixels;        // (num_images, side, side, 3)
    float* image;           // (num_images, 3, side, side)
    uint8_t* small_pixels;  // (num_images, 64, 64, 3)
    float* pivots;          // (num_images, P, C)
    float* dense;           // (num_images, N, C)
};

// May be used from several threads at once.
class Session {
  public:
    using MakeRunner = std::function<std::unique_ptr<StepRunner>()>;

    // What runs a bundle's graphs, on up to `max_batch` images at once, and why no GPU's recordings do.
    Session(std::shared_ptr<const Bundle> bundle, std::unique_ptr<StepRunner> runner, size_t max_batch,
            std::string why_not_gpu);

    // Generations by a GPU's recordings; `make_runner` makes what runs all else when it is first needed, null
    // = nothing does.
    Session(std::shared_ptr<const Bundle> bundle, std::shared_ptr<GpuPrograms> gpu, MakeRunner make_runner,
            size_t max_batch);

    const Manifest& manifest() const { return bundle_->manifest(); }
    const std::string& backend() const { return gpu_ != nullptr ? gpu_->name() : runner_->name(); }

    // What kept an automatic choice of the backend from a GPU's recordings; "" where nothing did.
    const std::string& why_not_gpu() const { return why_not_gpu_; }

    // Throws Error, or what the request's callback throws.
    void generate(const HmarRequest& request, const HmarOutput& output);
    void generate(const HimarRequest& request, const HimarOutput& output);

    // Tokens of pictures (num_images, side, side, 3): HMAR's, (num_images, num_tokens), or Hi-MAR's dense
    // ones, (num_images, num_dense, token_channels).
    void encode(const uint8_t* pixels, size_t num_images, int32_t* tokens);
    void encode(const uint8_t* pixels, size_t num_images, float* dense);

  private:
    void generate_part(StepRunner& runner, const HmarRequest& request, const HmarOutput& output, Part part);
    void generate_part(StepRunner& runner, const HimarRequest& request, const HimarOutput& output, Part part);
    // What runs a request step by step, and how many images at once; `refusal` says why a GPU does not, "" =
    // it does.
    std::pair<StepRunner&, size_t> steps_of(const std::string& refusal);
    StepRunner& runner(const std::string& why_not_gpu);
    // `of_image` is the shape of an image's tokens.
    template <typename T>
    void encode_to(T* tokens, const uint8_t* pixels, size_t num_images, const Shape& of_image);
    void write_image(const Tensor& image, Part part, uint8_t* pixels, float* values) const;
    static std::vector<Part> parts(size_t num_images, size_t max_batch);

    const std::shared_ptr<const Bundle> bundle_;
    const std::shared_ptr<GpuPrograms> gpu_;  // may be null, and then both that run them are
    const std::unique_ptr<GpuGenerations> generations_;
    const std::unique_ptr<GpuRunner> gpu_runner_;
    const MakeRunner make_runner_;
    std::mutex making_;
    std::unique_ptr<StepRunner> runner_;  // made under making_ if not there from the start; never replaced
    const size_t max_batch_;
    const std::string why_not_gpu_;
};

}  // namespace hmar::core
