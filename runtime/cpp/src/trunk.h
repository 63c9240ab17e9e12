// A step of one scale through its kind's scale-generic trunk, as runtime/backends/trunk.py does it.
#pragma once

#include "step_runner.h"

namespace hmar::core {

// Outputs of an `ns` or `mask` graph, by its embedding and its trunk: the same operations.
Values run_as_trunk(StepRunner& runner, const GraphSpec& graph, const Values& feeds);

}  // namespace hmar::core
