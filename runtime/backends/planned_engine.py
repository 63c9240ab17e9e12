"""Engines that launch the plugin library's kernels by plans."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.bundle import STORED_AS, Bundle, Kind, Manifest
from runtime.engine_plan import Dims, EngineOptions, plan_engines
from runtime.launches import ARRIVALS, LaunchPlan
from runtime.stages import align

Planned = dict[str, tuple[Sequence[Dims], Sequence[LaunchPlan]]]
"""By graph: its profiles, and a plan of each."""

COUNTER_NBYTES = 4  # of an arrival
FEW = 10  # launches, which are made as they are: inputs and outputs of a graph would be copied


class DeviceArrays:
    """Arrays in one piece of a device's memory, in their order; several engines may read them.

    Args:
        zeros: bytes of further memory, at the name ARRIVALS, that begin as zeros.

    Raises:
        DeviceMemoryError: there is no room.
    """

    def __init__(self, device: Device, arrays: Mapping[str, np.ndarray], zeros: int = 0) -> None:
        self._device = device
        self.nbytes = sum(align(array.nbytes) for array in arrays.values()) + align(zeros)
        self._memory = end = device.allocate(self.nbytes)
        self.addresses: dict[str, int] = {}
        for name, array in arrays.items():
            self.addresses[name] = end
            device.upload(end, array)
            end += align(array.nbytes)
        if zeros:
            self.addresses[ARRIVALS] = end
            device.zero(end, zeros)

    def close(self) -> None:
        """Frees the memory; a second call does nothing."""
        if self.addresses:
            self._device.free(self._memory)
            self.addresses.clear()


class PlannedEngine:
    """Launches kernels by a plan for each profile.

    Args:
        weights: closed with the engine.
        plan_nbytes: what the engine counts of their memory, which it may share with others.
    """

    def __init__(
        self,
        kernels: Kernels,
        device: Device,
        profiles: Sequence[Dims],
        plans: Sequence[LaunchPlan],
        weights: DeviceArrays,
        plan_nbytes: int,
    ) -> None:
        self._kernels, self._device, self._weights = kernels, device, weights
        self._profiles, self._plans, self.plan_nbytes = tuple(profiles), tuple(plans), plan_nbytes
        self._report: Callable[[str, float], None] | None = None

    @property
    def profiles(self) -> Sequence[Dims]:
        return self._profiles

    @property
    def activation_nbytes(self) -> Sequence[int]:
        return [plan.nbytes for plan in self._plans]

    @property
    def has_many_launches(self) -> bool:
        """Not while layers are reported: a graph is timed as a whole."""
        return self._report is None and max(len(plan.steps) for plan in self._plans) > FEW

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


def plan_graphs(
    manifest: Manifest,
    kinds: Collection[Kind],
    batches: Sequence[int],
    plan: Callable[[str, Dims], LaunchPlan],
) -> Planned:
    """Plans of all graphs of some kinds, for passes with and without guidance.

    Args:
        plan: that of a graph for the sizes of a profile.
    """
    options = EngineOptions(batches=tuple(batches), guidance="any")
    return {
        spec.graph: (spec.profiles, [plan(spec.graph, dims) for dims in spec.profiles])
        for spec in plan_engines(manifest, options)
        if spec.kind in kinds
    }


def share_weights(
    planned: Planned, kernels: Kernels, device: Device, arrays: Mapping[str, np.ndarray]
) -> dict[str, PlannedEngine]:
    """Engines by graph that read the same weights, which count as the first one's.

    Raises:
        DeviceMemoryError: there is no room for the weights.
    """
    arrivals = max(plan.num_arrivals for _, plans in planned.values() for plan in plans)
    weights = DeviceArrays(device, arrays, arrivals * COUNTER_NBYTES)
    nbytes = [weights.nbytes, *[0] * len(planned)]
    return {
        name: PlannedEngine(kernels, device, profiles, plans, weights, counted)
        for (name, (profiles, plans)), counted in zip(planned.items(), nbytes, strict=False)
    }


def tensor_reader(bundle: Bundle) -> Callable[[str], np.ndarray]:
    """Reads tensors of a bundle, by name, from its weights file."""
    tensors, path = bundle.manifest.tensors, bundle.path(bundle.manifest.weights)

    def read(name: str) -> np.ndarray:
        spec = tensors[name]
        return np.memmap(path, STORED_AS[spec.dtype], "r", spec.offset, spec.shape)

    return read
