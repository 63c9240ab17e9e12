// Arithmetic of NumPy where its rounding decides which tokens are kept.
#pragma once

#include <cstddef>

namespace hmar::core {

// values[i] = exp(values[i]) in float32 for values below 88, bit for bit as NumPy's on x86-64 with AVX2 or
// AVX-512. Elsewhere NumPy calls the C library, and the last bit may differ.
void exp_float32(float* values, size_t count);

// The pairwise sum of NumPy's add.reduce over contiguous values.
template <typename T>
T pairwise_sum(const T* values, size_t count) {
    if (count < 8) {
        T sum = 0;
        for (size_t i = 0; i < count; ++i) sum += values[i];
        return sum;
    }
    if (count > 128) {
        const size_t half = count / 2 / 8 * 8;
        return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
    }
    T s[8];
    for (size_t j = 0; j < 8; ++j) s[j] = values[j];
    size_t i = 8;
    for (; i + 8 <= count; i += 8) {
        for (size_t j = 0; j < 8; ++j) s[j] += values[i + j];
    }
    T sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    for (; i < count; ++i) sum += values[i];
    return sum;
}

}  // namespace hmar::core
