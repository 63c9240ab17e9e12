"""The sampling rule on the device: kernels of the plugin library, launched by address."""

from __future__ import annotations

from typing import Protocol

from runtime.backends.kernel_library import Kernels
from runtime.errors import BackendUnavailableError


class SamplingKernels(Protocol):
    """The rule of `runtime.sampler`, on memory of a device; arguments are addresses and sizes.

    Shapes and dtypes: `plugins_trt.sampling.kernel`.
    """

    def draw(
        self,
        *,
        logits: int,
        tokens: int,
        confidences: int,
        token_mask: int,
        settings: int,
        seed: int,
        images: int,
        batch: int,
        length: int,
        vocab: int,
        scale_idx: int,
        num_scales: int,
        pass_idx: int,
        is_guided: bool,
    ) -> None:
        """Tokens of one pass, and their confidences."""

    def select(
        self,
        *,
        confidences: int,
        candidates: int,
        selected: int,
        token_mask: int,
        batch: int,
        length: int,
        num_candidates: int,
        count: int,
        is_first: bool,
    ) -> None:
        """Positions of the next masked pass."""

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        """Images (B, 3, H, W) float32 in [0, 1] as (B, H, W, 3) uint8."""


class CudaSamplingKernels:
    """Kernels of the plugin library.

    Args:
        kernels: those of sampling.
        stream: on which to launch.
    """

    def __init__(self, kernels: Kernels, stream: int) -> None:
        self._kernels, self._stream = kernels, stream

    def draw(self, *, vocab: int, batch: int, length: int, **arguments: int) -> None:
        name = self._smallest("draw", vocab)
        self._launch(name, (length, batch), batch=batch, length=length, vocab=vocab, **arguments)

    def select(self, *, batch: int, length: int, **arguments: int) -> None:
        self._launch(self._smallest("select", length), (batch, 1), length=length, **arguments)

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        name = self._smallest("to_uint8", 1)
        grid = (-(-side * side // self._kernels.table[name]["block"]), batch)
        self._launch(name, grid, image=image, pixels=pixels, num_pixels=side * side)

    def _smallest(self, function: str, size: int) -> str:
        """The kernel whose block holds this many items."""
        fitting = {
            name: (entry["block"], -entry.get("step", 1))
            for name, entry in self._kernels.table.items()
            if entry["function"] == function
            and entry["block"] >= size
            and size % entry.get("step", 1) == 0
        }
        if not fitting:
            raise BackendUnavailableError(f"no sampling kernel {function} for {size} items")
        return min(fitting, key=fitting.__getitem__)

    def _launch(self, name: str, grid: tuple[int, int], **arguments: int) -> None:
        self._kernels.launch(name, grid, self._stream, arguments)
