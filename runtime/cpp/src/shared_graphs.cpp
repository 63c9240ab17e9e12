#include "shared_graphs.h"

#include <numeric>

namespace hmar::core {
namespace {

bool is_of_scale(const GraphSpec& graph) { return graph.kind == "ns" || graph.kind == "mask"; }

}  // namespace

bool has_shared_graphs(const GraphSpec& graph) {
    return is_of_scale(graph) ||
           ((graph.kind == "pivot" || graph.kind == "dense") && graph.step_idx.value_or(0) > 0);
}

Values run_by_shared_graphs(StepRunner& runner, const GraphSpec& graph, const Values& feeds) {
    const Manifest& manifest = runner.manifest();
    if (!is_of_scale(graph)) return runner.run(manifest.graph(graph.kind), feeds);
    const int scale_idx = graph.scale_idx.value_or(0);
    const bool is_mask = graph.kind == "mask";
    const auto length = int64_t(manifest.hmar().length(scale_idx));
    const Tensor positions = make_tensor<int32_t>({length}), cu_seqlens = make_tensor<int32_t>({2});
    auto* position = positions.values<int32_t>({length}, "positions");
    std::iota(position, position + length, int32_t(manifest.hmar().first(scale_idx)));
    cu_seqlens.values<int32_t>({2}, "cu_seqlens")[1] = int32_t(length);
    Values values = feeds;
    values["positions"] = positions;
    values["cu_seqlens"] = cu_seqlens;
    const GraphSpec& embed = manifest.graph(is_mask          ? "embed_mask"
                                            : scale_idx == 0 ? "embed_first"
                                                             : "embed_ns");
    values["x"] = runner.run_for("x", embed, values);
    return runner.run(manifest.graph(is_mask ? "mask_trunk" : "ns_trunk"), values);
}

}  // namespace hmar::core
