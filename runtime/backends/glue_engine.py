"""The kernels between the transformer passes as the engines of their graphs."""

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
from runtime.glue_plan import GLUE, check_tensors, glue_weights, plan_glue
from runtime.launches import KernelTable


def planned_glue(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of these graphs.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    check_tensors(manifest)
    return plan_graphs(
        manifest, GLUE, batches, lambda name, dims: plan_glue(manifest, name, dims, table)
    )


def glue_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of all graphs of the kinds `GLUE`, for passes with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_glue(bundle.manifest, kernels.table, batches)
    arrays = glue_weights(bundle.manifest, tensor_reader(bundle))
    return share_weights(planned, kernels, device, arrays)
