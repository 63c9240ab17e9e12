// Hi-MAR's passes, samplings and decoders on a GPU, each by one recording.
#pragma once

#include <memory>

#include "gpu_programs.h"
#include "himar_trajectory.h"
#include "step_runner.h"

namespace hmar::core {

// Values between passes are on the host.
class GpuHimarRunner : public StepRunner {
  public:
    GpuHimarRunner(const std::shared_ptr<const Bundle>& bundle, std::shared_ptr<GpuPrograms> programs)
        : StepRunner(bundle), programs_(std::move(programs)) {}

    const std::string& name() const override { return programs_->name(); }

    // The most images that recordings of a request are for at once.
    size_t max_batch() const;

    // Why a request cannot be served; "" where it can.
    std::string refusal(const HimarRequest& request) const;

    Values run(const GraphSpec& graph, const Values& feeds) override;
    std::optional<std::vector<float>> denoise(const Denoising& step, const Tensor& head_cond) override;

  protected:
    std::vector<Tensor> run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) override;

  private:
    // The recording of the smallest batch that `fits`, a function of a plan of this type; null = none.
    template <typename Plan, typename Fits>
    const RecordingEntry* find(Fits fits) const;

    const std::shared_ptr<GpuPrograms> programs_;
};

}  // namespace hmar::core
