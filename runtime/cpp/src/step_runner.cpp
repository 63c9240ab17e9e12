#include "step_runner.h"

namespace hmar::core {

Values StepRunner::run(const GraphSpec& graph, const Values& feeds) {
    std::vector<Tensor> inputs;
    for (const TensorSpec& spec : graph.inputs) {
        const auto fed = feeds.find(spec.name);
        if (fed == feeds.end() || fed->second.dtype != spec.dtype) {
            throw Error(HMAR_INVALID_BUNDLE,
                        text("graph ", graph.name, " takes ", spec.name, " as ", dtype_name(spec.dtype),
                             ", which no earlier step makes; export the bundle again"));
        }
        inputs.push_back(fed->second);
    }
    const std::vector<Tensor> results = run_in_order(graph, inputs);
    Values outputs;
    for (size_t i = 0; i < results.size(); ++i) outputs.emplace(graph.outputs[i].name, results[i]);
    return outputs;
}

std::optional<std::vector<float>> StepRunner::denoise(const Denoising&, const Tensor&) {
    return std::nullopt;
}

Tensor StepRunner::run_for(const std::string& output, const GraphSpec& graph, const Values& feeds) {
    return StepRunner::output(output, graph, run(graph, feeds));
}

Tensor StepRunner::output(const std::string& name, const GraphSpec& graph, const Values& values) {
    const auto found = values.find(name);
    if (found != values.end()) return found->second;
    throw Error(HMAR_INVALID_BUNDLE,
                text("graph ", graph.name, " has no output ", name, "; export the bundle again"));
}

}  // namespace hmar::core
