#include "low_resolution.h"

#include <algorithm>
#include <cmath>

namespace hmar::core {
namespace {

// Resizing of one axis, (64, side).
std::vector<double> bicubic_matrix(size_t side) {
    constexpr double a = -0.75;
    std::vector<double> matrix(kSmallSidePx * side);
    for (size_t row = 0; row < kSmallSidePx; ++row) {
        const double centre = (double(row) + 0.5) * double(side) / kSmallSidePx - 0.5,
                     base = std::floor(centre);
        for (int tap = -1; tap < 3; ++tap) {
            const double d = std::abs(centre - (base + tap));
            const double near = (a + 2) * d * d * d - (a + 3) * d * d + 1;
            const double far = a * (d * d * d - 5 * d * d + 8 * d - 4);
            const double column = std::clamp(base + tap, 0.0, double(side - 1));
            matrix[row * side + size_t(column)] += d <= 1 ? near : far;
        }
    }
    return matrix;
}

}  // namespace

std::vector<float> to_small(const float* image_B3HW, size_t batch, size_t side) {
    const std::vector<double> matrix = bicubic_matrix(side);
    std::vector<double> rows(kSmallSidePx * side);
    std::vector<float> small;
    for (size_t plane = 0; plane < 3 * batch; ++plane, image_B3HW += side * side) {
        for (size_t y = 0; y < kSmallSidePx; ++y) {
            for (size_t x = 0; x < side; ++x) {
                double sum = 0;
                for (size_t i = 0; i < side; ++i)
                    sum += matrix[y * side + i] * double(image_B3HW[i * side + x]);
                rows[y * side + x] = sum;
            }
        }
        for (size_t y = 0; y < kSmallSidePx; ++y) {
            for (size_t x = 0; x < kSmallSidePx; ++x) {
                double sum = 0;
                for (size_t i = 0; i < side; ++i) sum += rows[y * side + i] * matrix[x * side + i];
                small.push_back(float(sum));
            }
        }
    }
    return small;
}

}  // namespace hmar::core
