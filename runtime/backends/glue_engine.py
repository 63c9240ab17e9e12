"""The kernels between the transformer passes as the engines of their graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.bundle import STORED_AS, Bundle
from runtime.engine_plan import Dims, EngineOptions, plan_profiles
from runtime.glue_plan import GLUE, check_tensors, glue_weights, plan_glue
from runtime.launches import LaunchPlan
from runtime.stages import align


class GlueWeights:
    """What the kernels of all these graphs read, in one piece of memory."""

    def __init__(self, device: Device, arrays: Mapping[str, np.ndarray]) -> None:
        self._device = device
        self.nbytes = sum(align(array.nbytes) for array in arrays.values())
        self._memory = end = device.allocate(self.nbytes)
        self.addresses: dict[str, int] = {}
        for name, array in arrays.items():
            self.addresses[name] = end
            device.upload(end, array)
            end += align(array.nbytes)

    def close(self) -> None:
        if self.addresses:
            self._device.free(self._memory)
            self.addresses.clear()


class GlueEngine:
    """Launches kernels by a plan for each profile.

    Args:
        weights: freed with the engine that is closed first.
    """

    def __init__(
        self,
        kernels: Kernels,
        device: Device,
        profiles: Sequence[Dims],
        plans: Sequence[LaunchPlan],
        weights: GlueWeights,
    ) -> None:
        self._kernels, self._device, self._weights = kernels, device, weights
        self._profiles, self._plans = tuple(profiles), tuple(plans)
        self._report: Callable[[str, float], None] | None = None
        self.plan_nbytes = 0

    @property
    def profiles(self) -> Sequence[Dims]:
        return self._profiles

    @property
    def activation_nbytes(self) -> Sequence[int]:
        return [plan.nbytes for plan in self._plans]

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        plan = self._plans[profile]
        places = {name: activations + at for name, at in plan.offsets.items()}
        places.update(self._weights.addresses)
        places.update(addresses)
        marks = [] if self._report is None else [self._device.record()]
        for step in plan.steps:
            pointers = {parameter: places[name] for parameter, name in step.pointers.items()}
            self._kernels.launch(step.kernel, step.grid, stream, {**pointers, **step.scalars})
            if self._report is not None:
                marks.append(self._device.record())
        if self._report is not None:
            for step, (start, stop) in zip(plan.steps, pairwise(marks), strict=True):
                self._report(step.kernel, self._device.elapsed_ms(start, stop))

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        self._report = report

    def close(self) -> None:
        self._weights.close()


def glue_engines(
    bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
) -> dict[str, GlueEngine]:
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
            planned[name] = (
                profiles,
                [plan_glue(manifest, name, p, kernels.table) for p in profiles],
            )
    path = bundle.path(manifest.weights)

    def read(name: str) -> np.ndarray:
        spec = manifest.tensors[name]
        return np.memmap(path, STORED_AS[spec.dtype], "r", spec.offset, spec.shape)

    weights = GlueWeights(device, glue_weights(manifest, read))
    return {
        name: GlueEngine(kernels, device, profiles, plans, weights)
        for name, (profiles, plans) in planned.items()
    }
