"""The kernels of Hi-MAR's denoisers as the engines of their graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import (
    DeviceArrays,
    Planned,
    PlannedEngine,
    share_weights,
    tensor_reader,
)
from runtime.backends.transformer_engine import COUNTER_NBYTES
from runtime.bundle import Bundle, Manifest
from runtime.denoiser_plan import DENOISER_KINDS, denoiser_weights, plan_denoiser, read_sizes
from runtime.engine_plan import EngineOptions, plan_engines
from runtime.launches import KernelTable


def planned_denoisers(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of the denoisers' graphs, with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    planned: Planned = {}
    for spec in plan_engines(manifest, EngineOptions(batches=tuple(batches), guidance="any")):
        if spec.kind in DENOISER_KINDS:
            sizes, dense = read_sizes(manifest, spec.kind), manifest.himar.num_dense
            plans = [
                plan_denoiser(sizes, spec.kind, dims, dims.get("n", dense), table)
                for dims in spec.profiles
            ]
            planned[spec.graph] = spec.profiles, plans
    return planned


def denoiser_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of the denoisers' graphs; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_denoisers(bundle.manifest, kernels.table, batches)
    arrivals = max(plan.num_arrivals for _, plans in planned.values() for plan in plans)
    heads = (read_sizes(bundle.manifest, kind) for kind in ("denoise_pivot", "denoise_dense"))
    arrays: dict[str, np.ndarray] = {}
    for sizes in heads:
        arrays |= denoiser_weights(sizes, tensor_reader(bundle))
    weights = DeviceArrays(device, arrays, arrivals * COUNTER_NBYTES)
    return share_weights(planned, kernels, device, weights)
