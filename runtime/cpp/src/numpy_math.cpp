#include "numpy_math.h"

#include <cmath>

namespace hmar::core {
namespace {

// NumPy (BSD 3-Clause), numpy/_core/src/umath/loops_exponent_log.dispatch.c.src: x = q ln 2 + r, with ln 2
// in two parts, and exp(r) as a quotient of polynomials; every product is fused with the sum after it.
[[gnu::always_inline]] inline float exp_as_numpy(float x) {
    constexpr float kLog2E = 1.442695041f, kRound = 0x1.8p23f, kLeast = -103.97208405f;
    constexpr float kLn2High = 6.93145752e-1f, kLn2Low = 1.42860677e-6f;
    constexpr float kP[] = {9.999999999980870924916e-01f, 7.257664613233124478488e-01f,
                            2.473615434895520810817e-01f, 5.114512081637298353406e-02f,
                            6.757896990527504603057e-03f, 5.082762527590693718096e-04f};
    constexpr float kQ[] = {1.0f, -2.742335390411667452936e-01f, 2.159509375685829852307e-02f};
    if (x <= kLeast) return 0.0f;
    const float q = (x * kLog2E + kRound) - kRound;
    const float r = std::fma(q, -kLn2Low, std::fma(q, -kLn2High, x));
    float p = kP[5];
    for (int i = 4; i >= 0; --i) p = std::fma(p, r, kP[i]);
    const float d = std::fma(std::fma(kQ[2], r, kQ[1]), r, kQ[0]);
    return std::ldexp(p / d, int(q));
}

void exp_baseline(float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] = exp_as_numpy(values[i]);
}

#if defined(__x86_64__)
// The same with the processor's fused instruction, where the one above calls the C library's fma.
[[gnu::target("fma")]] void exp_fma(float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] = exp_as_numpy(values[i]);
}
#endif

}  // namespace

void exp_float32(float* values, size_t count) {
#if defined(__x86_64__)
    static const bool has_fma = __builtin_cpu_supports("fma");
    if (has_fma) return exp_fma(values, count);
#endif
    exp_baseline(values, count);
}

}  // namespace hmar::core
