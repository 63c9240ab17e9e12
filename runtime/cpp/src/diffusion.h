// Reverse diffusion of Hi-MAR's tokens, as runtime/diffusion.py states it: coefficients in float64, steps in
// float32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hmar::core {

// Time steps of the 1000-step axis that a sampling visits, ascending. `respacing` holds counts separated by
// commas, each for an equal section of the axis. Throws Error.
std::vector<int32_t> respaced_timesteps(const std::string& respacing);

class DiffusionSchedule {
  public:
    explicit DiffusionSchedule(const std::string& respacing);

    size_t num_steps() const { return timesteps_.size(); }
    int32_t timestep(size_t i) const { return timesteps_[i]; }
    const std::vector<int32_t>& timesteps() const { return timesteps_; }

    // A token's value, noised to step i.
    float noised(size_t i, float x0, float noise) const;

    // Replaces the states x of step i by those before it.
    //
    // predicted: what the denoiser says the noise is.
    // variance: its variance values, -1 is the lower end of the log-variance, 1 the upper; null = fixed.
    // noise: times `temperature`, goes into all steps but the last, 0.
    void reverse(size_t i, const float* predicted, const float* variance, const float* noise,
                 float temperature, std::vector<float>& x) const;

  private:
    // By step, rounded to float32 where they meet values.
    struct Coefficients {
        double signal, mean_x0, mean_x, log_beta, posterior_log_variance, fixed_log_variance;
    };

    std::vector<int32_t> timesteps_;
    std::vector<Coefficients> steps_;
};

}  // namespace hmar::core
