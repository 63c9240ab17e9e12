// What the sampling loop asks of an inference library.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "denoising.h"
#include "tensor.h"

namespace hmar::core {

// Runs graphs of a bundle. May be used from several threads at once.
class StepRunner {
  public:
    explicit StepRunner(std::shared_ptr<const Bundle> bundle) : bundle_(std::move(bundle)) {}
    virtual ~StepRunner() = default;

    const Bundle& bundle() const { return *bundle_; }
    const Manifest& manifest() const { return bundle_->manifest(); }

    // The backend and the library, for people.
    virtual const std::string& name() const = 0;

    // Outputs of a graph by name. `feeds` has a value for every input, and may have others.
    // Throws Error where one is missing, a dtype differs, or the library fails.
    virtual Values run(const GraphSpec& graph, const Values& feeds);

    // Tokens (B, n, C) of a Hi-MAR step, where the backend samples them at once.
    virtual std::optional<std::vector<float>> denoise(const Denoising& step, const Tensor& head_cond);

    // One output of a graph.
    Tensor run_for(const std::string& output, const GraphSpec& graph, const Values& feeds);

    // One of the values that `run` returned for a graph. Throws Error where there is none of this name.
    static Tensor output(const std::string& name, const GraphSpec& graph, const Values& values);

  protected:
    // Outputs in the manifest's order, from inputs in the manifest's order.
    virtual std::vector<Tensor> run_in_order(const GraphSpec& graph, const std::vector<Tensor>& inputs) = 0;

  private:
    const std::shared_ptr<const Bundle> bundle_;
};

}  // namespace hmar::core
