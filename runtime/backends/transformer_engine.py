"""The transformer's kernels as the engines of its trunks."""

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
from runtime.engine_plan import Dims
from runtime.launches import KernelTable, LaunchPlan
from runtime.transformer_plan import PASSES, plan_pass, read_sizes, transformer_weights


def planned_passes(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of the trunks.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    sizes = read_sizes(manifest)

    def plan(name: str, dims: Dims) -> LaunchPlan:
        branch = manifest.graphs[name].kind.removesuffix("_trunk")
        return plan_pass(sizes, branch, dims["N"], dims["l"], table)

    return plan_graphs(manifest, PASSES, batches, plan)


def transformer_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of the trunks, for passes with and without guidance; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_passes(bundle.manifest, kernels.table, batches)
    arrays = transformer_weights(read_sizes(bundle.manifest), tensor_reader(bundle))
    return share_weights(planned, kernels, device, arrays)
