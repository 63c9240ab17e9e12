#include "half.h"

#include <cmath>
#include <cstring>

#include "error.h"

namespace hmar::core {
namespace {

uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

uint16_t to_float16(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (!(magnitude < 65520)) return uint16_t(sign | (std::isnan(value) ? 0x7E00 : 0x7C00));
    if (magnitude < 0x1p-14f)
        return uint16_t(sign | uint16_t(std::nearbyint(magnitude * 0x1p24f)));  // denormal
    int exponent;
    const float fraction = std::frexp(magnitude, &exponent);             // in [0.5, 1)
    const auto mantissa = uint16_t(std::nearbyint(fraction * 0x1p11f));  // 2^10 .. 2^11, which may carry
    return uint16_t(sign | uint16_t(((exponent + 14) << 10) + mantissa - 1024));
}

}  // namespace

void store(const float* values, size_t count, Dtype dtype, void* into) {
    if (dtype == Dtype::float32) {
        std::memcpy(into, values, count * sizeof(float));
        return;
    }
    if (dtype != Dtype::float16 && dtype != Dtype::bfloat16) {
        throw Error(HMAR_INVALID_BUNDLE, text("vectors cannot be stored as ", dtype_name(dtype)));
    }
    auto* halves = static_cast<uint16_t*>(into);
    for (size_t i = 0; i < count; ++i) {
        halves[i] = dtype == Dtype::float16 ? to_float16(values[i]) : to_bfloat16(values[i]);
    }
}

}  // namespace hmar::core
