#include "generation.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace hmar::core {

void check_cancelled(const Cancelled& cancelled, Part images) {
    if (cancelled == nullptr || !cancelled->load()) return;
    throw Error(HMAR_CANCELLED,
                text("generation cancelled before images ", images.first, " to ",
                     images.first + images.count - 1, " were done; the session can be used again"));
}

void to_uint8(const float* image_B3HW, size_t batch, size_t side, uint8_t* pixels_BHW3) {
    const size_t area = side * side;
    for (size_t b = 0; b < batch; ++b) {
        for (size_t i = 0; i < area; ++i) {
            for (size_t c = 0; c < 3; ++c) {
                const float value = std::nearbyint(image_B3HW[(3 * b + c) * area + i] * 255);
                *pixels_BHW3++ = value > 0 ? uint8_t(std::min(value, 255.0f)) : 0;
            }
        }
    }
}

}  // namespace hmar::core
