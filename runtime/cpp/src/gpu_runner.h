// Single graphs on a GPU, and the samplings of Hi-MAR's steps, each by one recording.
#pragma once

#include <memory>
#include <optional>

#include "gpu_programs.h"
#include "himar_trajectory.h"
#include "hmar_trajectory.h"
#include "step_runner.h"

namespace hmar::core {

// Values between graphs are on the host.
class GpuRunner : public StepRunner {
  public:
    GpuRunner(const std::shared_ptr<const Bundle>& bundle, std::shared_ptr<GpuPrograms> programs)
        : StepRunner(bundle), programs_(std::move(programs)) {}

    const std::string& name() const override { return programs_->name(); }

    // The most images that recordings are for at once.
    size_t max_batch() const;

    // Why the steps of a request cannot be run; "" where they can.
    std::string refusal(const HmarRequest& request) const;
    std::string refusal(const HimarRequest& request) const;

    // Whether there is a recording of the graph that encodes.
    bool can_encode() const;

    Values run(const GraphSpec& graph, const Values& feeds) override;
    std::optional<std::vector<float>> denoise(const Denoising& step, const Tensor& head_cond) override;

  protected:
    std::vector<Tensor> run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) override;

  private:
    // The recording of the smallest batch that `fits`, a function of a plan of this type; null = none.
    template <typename Plan, typename Fits>
    const RecordingEntry* find(Fits fits) const;

    // Whether a graph is recorded with so many rows an image.
    bool has(const GraphSpec& graph, int rows_per_image) const;

    const std::shared_ptr<GpuPrograms> programs_;
};

}  // namespace hmar::core
