// What generations of both model families share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace hmar::core {

// Consecutive images of a request that fit into one pass.
struct Part {
    size_t first, count;
};

// The caller's wish to end a generation; null = there will be none.
using Cancelled = std::shared_ptr<const std::atomic<bool>>;

// Throws Error where the caller wants no more of a part.
void check_cancelled(const Cancelled& cancelled, Part images);

// Images (B, 3, side, side) in [0, 1], or beyond, as (B, side, side, 3) uint8.
void to_uint8(const float* image_B3HW, size_t batch, size_t side, uint8_t* pixels_BHW3);

}  // namespace hmar::core
