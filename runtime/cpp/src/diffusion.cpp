#include "diffusion.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "error.h"
#include "numpy_math.h"

namespace hmar::core {
namespace {

constexpr int kBaseSteps = 1000;
constexpr double kMaxBeta = 0.999;

std::vector<int> parse_counts(const std::string& respacing) {
    std::vector<int> counts;
    std::istringstream parts(respacing);
    for (std::string part; std::getline(parts, part, ',');) {
        int count = -1;
        const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), count);
        counts.push_back(code == std::errc{} && end == part.data() + part.size() ? count : -1);
    }
    if (counts.empty() || respacing.back() == ',') counts.push_back(-1);
    return counts;
}

// Signal share after every step of the base process.
std::vector<double> base_signal() {
    const auto end = [](int t) {
        const double c = std::cos((double(t) / kBaseSteps + 0.008) / 1.008 * M_PI / 2);
        return c * c;
    };
    std::vector<double> signal;
    double product = 1;
    for (int t = 0; t < kBaseSteps; ++t) {
        product *= 1 - std::min(1 - end(t + 1) / end(t), kMaxBeta);
        signal.push_back(product);
    }
    return signal;
}

}  // namespace

std::vector<int32_t> respaced_timesteps(const std::string& respacing) {
    const std::vector<int> counts = parse_counts(respacing);
    const int sections = int(counts.size()), size = kBaseSteps / sections, longer = kBaseSteps % sections;
    std::vector<int32_t> timesteps;
    int first = 0;
    for (int section = 0; section < sections; ++section) {
        const int count = counts[size_t(section)], length = size + (section < longer);
        if (count < 0 || count > length) {
            throw Error(
                HMAR_INVALID_ARGUMENT,
                text("diffusion steps '", respacing,
                     "': expected counts separated by commas, such as 100 or 5,3,2,0, each from 0 to ",
                     length));
        }
        const double stride = count > 1 ? double(length - 1) / (count - 1) : 1.0;
        double place = 0;
        for (int i = 0; i < count; ++i) {
            timesteps.push_back(first + int32_t(std::nearbyint(place)));
            place += stride;  // added up, not multiplied: the published rounding
        }
        first += length;
    }
    if (timesteps.size() < 2) {
        throw Error(HMAR_INVALID_ARGUMENT, text("diffusion steps '", respacing, "' are ", timesteps.size(),
                                                " in all, at least 2 are needed"));
    }
    return timesteps;
}

DiffusionSchedule::DiffusionSchedule(const std::string& respacing)
    : timesteps_(respaced_timesteps(respacing)) {
    const std::vector<double> base = base_signal();
    double chosen_before = 1, before = 1;
    std::vector<double> betas, posterior;
    for (const int32_t timestep : timesteps_) {
        const double chosen = base[size_t(timestep)], beta = 1 - chosen / chosen_before;
        const double signal = before * (1 - beta);
        betas.push_back(beta);
        posterior.push_back(beta * (1 - before) / (1 - signal));
        steps_.push_back({signal, beta * std::sqrt(before) / (1 - signal),
                          (1 - before) * std::sqrt(1 - beta) / (1 - signal), std::log(beta), 0, 0});
        chosen_before = chosen, before = signal;
    }
    for (size_t i = 0; i < steps_.size(); ++i) {
        // the posterior variance of step 0 is zero; that of step 1 stands in
        steps_[i].posterior_log_variance = std::log(posterior[std::max(i, size_t{1})]);
        steps_[i].fixed_log_variance = std::log(i == 0 ? posterior[1] : betas[i]);
    }
}

float DiffusionSchedule::noised(size_t i, float x0, float noise) const {
    const double A = steps_[i].signal;
    return float(std::sqrt(A)) * x0 + float(std::sqrt(1 - A)) * noise;
}

void DiffusionSchedule::reverse(size_t i, const float* predicted, const float* variance, const float* noise,
                                float temperature, std::vector<float>& x) const {
    const Coefficients& step = steps_[i];
    const auto of_x = float(std::sqrt(1 / step.signal)), of_noise = float(std::sqrt(1 / step.signal - 1));
    const auto mean_x0 = float(step.mean_x0), mean_x = float(step.mean_x);
    const auto log_beta = float(step.log_beta), posterior = float(step.posterior_log_variance);
    std::vector<float> deviation(i > 0 ? x.size() : 0, float(step.fixed_log_variance) / 2);
    for (size_t v = 0; v < deviation.size() && variance != nullptr; ++v) {
        const float upper = (variance[v] + 1) / 2;
        deviation[v] = (upper * log_beta + (1 - upper) * posterior) / 2;
    }
    exp_float32(deviation.data(), deviation.size());
    for (size_t v = 0; v < x.size(); ++v) {
        const float x0 = of_x * x[v] - of_noise * predicted[v];
        const float mean = mean_x0 * x0 + mean_x * x[v];
        x[v] = i > 0 ? mean + deviation[v] * noise[v] * temperature : mean;
    }
}

}  // namespace hmar::core
