"""The kernels of Hi-MAR's passes as the engines of their graphs."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import (
    Planned,
    PlannedEngine,
    plan_graphs,
    share_weights,
    tensor_reader,
)
from runtime.bundle import Bundle, Manifest
from runtime.engine_plan import Dims, resolve
from runtime.himar_plan import HIMAR_PASSES, himar_weights, plan_graph, read_sizes
from runtime.launches import KernelTable, LaunchPlan


def planned_himar(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of the passes' graphs, with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    sizes = read_sizes(manifest)

    def plan(name: str, dims: Dims) -> LaunchPlan:
        graph = manifest.graphs[name]
        shapes = {spec.name: resolve(spec, dims) for spec in graph.inputs}
        known, predicted = (shapes.get(given, (0, 0))[1] for given in ("known", "predicted"))
        return plan_graph(sizes, graph.kind, dims["N"], known, predicted, table)

    return plan_graphs(manifest, HIMAR_PASSES, batches, plan)


def himar_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of the passes' graphs; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_himar(bundle.manifest, kernels.table, batches)
    arrays = himar_weights(read_sizes(bundle.manifest), tensor_reader(bundle))
    return share_weights(planned, kernels, device, arrays)
