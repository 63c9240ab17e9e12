"""The kernels between the transformer passes as the engines of their graphs."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.backends.planned_engine import DeviceArrays, PlannedEngine, tensor_reader
from runtime.bundle import Bundle
from runtime.engine_plan import EngineOptions, plan_profiles
from runtime.glue_plan import GLUE, check_tensors, glue_weights, plan_glue


def glue_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, PlannedEngine]:
    """Engines of all graphs of the kinds `GLUE`, for passes with and without guidance.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """
    manifest = bundle.manifest
    check_tensors(manifest)
    options = EngineOptions(batches=tuple(batches), guidance="any")
    planned = {}
    for name, spec in manifest.graphs.items():
        if spec.kind in GLUE:
            profiles = plan_profiles(spec, manifest.hmar.patch_nums, options)
            plans = [plan_glue(manifest, name, dims, kernels.table) for dims in profiles]
            planned[name] = profiles, plans
    weights = DeviceArrays(device, glue_weights(manifest, tensor_reader(bundle)))
    nbytes = [weights.nbytes, *[0] * len(planned)]  # counted once
    return {
        name: PlannedEngine(kernels, device, profiles, plans, weights, counted)
        for (name, (profiles, plans)), counted in zip(planned.items(), nbytes, strict=False)
    }
