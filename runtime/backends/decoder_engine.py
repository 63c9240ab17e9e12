"""The decoder's kernels as the engine of the graph `decode`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from plugins_trt.decoder.weights import prepare
from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Kernels
from runtime.bundle import STORED_AS, Bundle
from runtime.decoder_plan import DecoderPlan, DecoderSizes, check_weights, plan_decoder, read_sizes
from runtime.engine_plan import Dims
from runtime.stages import align


class DecoderEngine:
    """Launches kernels by a plan for each batch size.

    Args:
        weights: a tensor of the decoder, as a bundle holds it.
        batches: numbers of images, one profile each.

    Raises:
        BackendUnavailableError: there are no kernels for these sizes.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """

    def __init__(
        self,
        kernels: Kernels,
        device: Device,
        sizes: DecoderSizes,
        batches: Sequence[int],
        weights: Callable[[str], np.ndarray],
    ) -> None:
        self._kernels, self._device = kernels, device
        self._profiles = [{"B": batch} for batch in batches]
        self._plans = [plan_decoder(sizes, batch, kernels.table) for batch in batches]
        self._report: Callable[[str, float], None] | None = None
        self._memory, self._weights, self.plan_nbytes = _upload(device, self._plans[0], weights)

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, kernels: Kernels, device: Device, batches: Sequence[int]
    ) -> DecoderEngine:
        """The decoder of a bundle; raises as the class does."""
        manifest, path = bundle.manifest, bundle.path(bundle.manifest.weights)
        sizes = read_sizes(manifest)
        check_weights(plan_decoder(sizes, batches[0], kernels.table).weights, manifest)

        def read(name: str) -> np.ndarray:
            spec = manifest.tensors[name]
            return np.memmap(path, STORED_AS[spec.dtype], "r", spec.offset, spec.shape)

        return cls(kernels, device, sizes, batches, read)

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
        places.update(self._weights)
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
        self._weights.clear()
        self._device.free(self._memory)


def _upload(
    device: Device, plan: DecoderPlan, weights: Callable[[str], np.ndarray]
) -> tuple[int, dict[str, int], int]:
    """Puts what a plan reads into one piece of memory: its address, those by name, and its size."""
    arrays = {
        name: prepare(weights(name), upsamples=use.upsamples) for name, use in plan.weights.items()
    }
    total = sum(align(array.nbytes) for array in arrays.values())
    memory = end = device.allocate(total)
    addresses = {}
    for name, array in arrays.items():
        addresses[name] = end
        device.upload(end, array)
        end += align(array.nbytes)
    return memory, addresses, total
