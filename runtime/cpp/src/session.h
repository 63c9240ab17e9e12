// A bundle on a backend: generation and encoding of any number of images.
#pragma once

#include <memory>
#include <vector>

#include "himar_trajectory.h"
#include "hmar_trajectory.h"

namespace hmar::core {

// Where results go; null = not wanted.
struct HmarOutput {
    uint8_t* pixels;  // (num_images, side, side, 3)
    float* image;     // (num_images, 3, side, side), in [0, 1]
    int32_t* tokens;  // (num_images, num_tokens)
};

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
    Session(std::unique_ptr<StepRunner> runner, size_t max_batch);

    const Manifest& manifest() const { return runner_->manifest(); }
    const std::string& backend() const { return runner_->name(); }

    // Throws Error, or what the request's callback throws.
    void generate(const HmarRequest& request, const HmarOutput& output);
    void generate(const HimarRequest& request, const HimarOutput& output);

    // Tokens by HMAR, (num_images, num_tokens) of pictures (num_images, side, side, 3).
    void encode(const uint8_t* pixels, size_t num_images, int32_t* tokens);

  private:
    void generate_part(const HmarRequest& request, const HmarOutput& output, Part part);
    void generate_part(const HimarRequest& request, const HimarOutput& output, Part part);
    void write_image(const Tensor& image, Part part, uint8_t* pixels, float* values) const;
    std::vector<Part> parts(size_t num_images) const;

    const std::unique_ptr<StepRunner> runner_;
    const size_t max_batch_;
};

}  // namespace hmar::core
