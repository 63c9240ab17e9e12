"""The kernels of Hi-MAR's denoisers as the engines of their graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
from runtime.denoiser_plan import DENOISER_KINDS, denoiser_weights, plan_denoiser, read_sizes
from runtime.engine_plan import Dims
from runtime.launches import KernelTable, LaunchPlan


def planned_denoisers(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of the denoisers' graphs, with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    kinds = {name: graph.kind for name, graph in manifest.graphs.items()}
    sizes = {kind: read_sizes(manifest, kind) for kind in DENOISER_KINDS}

    def plan(name: str, dims: Dims) -> LaunchPlan:
        length = dims.get("n", manifest.himar.num_dense)
        return plan_denoiser(sizes[kinds[name]], kinds[name], dims, length, table)

    return plan_graphs(manifest, DENOISER_KINDS, batches, plan)


def denoiser_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of the denoisers' graphs; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_denoisers(bundle.manifest, kernels.table, batches)
    heads = (read_sizes(bundle.manifest, kind) for kind in ("denoise_pivot", "denoise_dense"))
    arrays: dict[str, np.ndarray] = {}
    for sizes in heads:
        arrays |= denoiser_weights(sizes, tensor_reader(bundle))
    return share_weights(planned, kernels, device, arrays)
