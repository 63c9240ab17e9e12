#include "generation.h"

#include <algorithm>

#include "error.h"

namespace hmar::core {

void check_cancelled(const Cancelled& cancelled, Part images) {
    if (cancelled == nullptr || !cancelled->load()) return;
    throw Error(HMAR_CANCELLED,
                text("generation cancelled before images ", images.first, " to ",
                     images.first + images.count - 1, " were done; the session can be used again"));
}

void to_uint8(const float* image_B3HW, size_t batch, size_t side, uint8_t* pixels_BHW3) {
    // a float32 that this is added to has no fraction any more: it was rounded, half to even
    constexpr float kWhole = 0x1.8p23f;
    const size_t area = side * side;
    for (const float *image = image_B3HW, *end = image + 3 * area * batch; image != end; image += 3 * area) {
        for (size_t i = 0; i < area; ++i) {
            for (size_t c = 0; c < 3; ++c) {
                const float value = image[c * area + i] * 255;
                const float within = value > 0 ? std::min(value, 255.0f) : 0.0f;  // 0 for NaN, too
                *pixels_BHW3++ = uint8_t(int(within + kWhole - kWhole));
            }
        }
    }
}

}  // namespace hmar::core
