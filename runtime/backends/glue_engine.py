"""The kernels between the transformer passes as the engines of their graphs."""

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
from runtime.glue_plan import GLUE, check_tensors, glue_weights, plan_glue
from runtime.launches import KernelTable


def planned_glue(manifest: Manifest, table: KernelTable, batches: Sequence[int]) -> Planned:
    """Profiles and plans of these graphs.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
    """
    check_tensors(manifest)
    options = EngineOptions(batches=tuple(batches), guidance="any")
    planned: Planned = {}
    for name, spec in manifest.graphs.items():
        if spec.kind in GLUE:
            profiles = plan_profiles(spec, manifest.hmar.patch_nums, options)
            plans = [plan_glue(manifest, name, dims, table) for dims in profiles]
            planned[name] = profiles, plans
    return planned


def glue_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of all graphs of the kinds `GLUE`, for passes with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    planned = planned_glue(bundle.manifest, kernels.table, batches)
    weights = DeviceArrays(device, glue_weights(bundle.manifest, tensor_reader(bundle)))
    nbytes = [weights.nbytes, *[0] * len(planned)]  # counted once
    return {
        name: PlannedEngine(kernels, device, profiles, plans, weights, counted)
        for (name, (profiles, plans)), counted in zip(planned.items(), nbytes, strict=False)
    }
