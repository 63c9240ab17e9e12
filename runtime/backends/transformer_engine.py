"""The transformer's kernels as the engines of its trunks."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import (
    DeviceArrays,
    Planned,
    PlannedEngine,
    tensor_reader,
)
from runtime.bundle import Bundle, Manifest
from runtime.engine_plan import EngineOptions, plan_profiles
from runtime.launches import KernelTable
from runtime.transformer_plan import PASSES, plan_pass, read_sizes, transformer_weights

COUNTER_NBYTES = 4


def planned_passes(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of the trunks.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    sizes = read_sizes(manifest)
    options = EngineOptions(batches=tuple(batches), guidance="any")
    planned: Planned = {}
    for name, spec in manifest.graphs.items():
        if spec.kind in PASSES:
            profiles = plan_profiles(spec, manifest.hmar.patch_nums, options)
            branch = spec.kind.removesuffix("_trunk")
            plans = [plan_pass(sizes, branch, d["N"], d["l"], table) for d in profiles]
            planned[name] = profiles, plans
    return planned


def transformer_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of the trunks, for passes with and without guidance; they share their weights.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_passes(bundle.manifest, kernels.table, batches)
    arrivals = max(plan.num_arrivals for _, plans in planned.values() for plan in plans)
    arrays = transformer_weights(read_sizes(bundle.manifest), tensor_reader(bundle))
    weights = DeviceArrays(device, arrays, arrivals * COUNTER_NBYTES)
    nbytes = [weights.nbytes, *[0] * len(planned)]  # counted once
    return {
        name: PlannedEngine(kernels, device, profiles, plans, weights, counted)
        for (name, (profiles, plans)), counted in zip(planned.items(), nbytes, strict=False)
    }
