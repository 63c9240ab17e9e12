// A step through graphs that all scales, or all steps of a phase but the first, have in common, as
// runtime/backends/shared_graphs.py does it.
#pragma once

#include "step_runner.h"

namespace hmar::core {

// Whether others do what this graph does, for all scales or steps.
bool has_shared_graphs(const GraphSpec& graph);

// Outputs of such a graph: the same operations by a phase's graph, or embedding and trunk.
Values run_by_shared_graphs(StepRunner& runner, const GraphSpec& graph, const Values& feeds);

}  // namespace hmar::core
