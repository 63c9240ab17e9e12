"""Reverse diffusion on the device: kernels of the plugin library, launched by address."""

from __future__ import annotations

from typing import Protocol

from runtime.backends.kernel_library import Kernels

WORDS = 4  # numbers of one Philox block, and channels that one lane computes


class DiffusionKernels(Protocol):
    """The rule of `runtime.denoising`, on memory of a device; arguments are addresses and sizes.

    Shapes, dtypes and meanings: `plugins_trt.sampling.diffusion`.
    """

    def start(
        self,
        *,
        state: int,
        first: int,
        timestep: int,
        held_tokens: int,
        held: int,
        positions: int,
        images: int,
        seed: int,
        counter: int,
        batch: int,
        length: int,
        groups: int,
        next_timestep: int,
        has_held: bool,
        held_signal: float,
        held_noise: float,
    ) -> None:
        """The first state."""

    def reverse(
        self,
        *,
        state: int,
        first: int,
        noise: int,
        variance: int,
        timestep: int,
        held_tokens: int,
        held: int,
        positions: int,
        images: int,
        seed: int,
        counter: int,
        temperature: int,
        batch: int,
        length: int,
        groups: int,
        draw: int,
        next_timestep: int,
        has_variance: bool,
        has_held: bool,
        x0_from_state: float,
        x0_from_noise: float,
        mean_x0: float,
        mean_x: float,
        log_upper: float,
        log_lower: float,
        held_signal: float,
        held_noise: float,
    ) -> None:
        """One step."""


class CudaDiffusionKernels:
    """Kernels of the plugin library.

    Args:
        kernels: those of sampling.
        stream: on which to launch.
    """

    def __init__(self, kernels: Kernels, stream: int) -> None:
        self._kernels, self._stream = kernels, stream
        self._names = {entry["function"]: name for name, entry in kernels.table.items()}

    def start(self, **arguments: int | float) -> None:
        self._launch("start", arguments)

    def reverse(self, **arguments: int | float) -> None:
        self._launch("reverse", arguments)

    def _launch(self, function: str, arguments: dict[str, int | float]) -> None:
        name = self._names[function]
        lanes = arguments["batch"] * arguments["length"] * arguments["groups"]
        grid = (-int(-lanes // self._kernels.table[name]["block"]), 1)
        self._kernels.launch(name, grid, self._stream, arguments)
