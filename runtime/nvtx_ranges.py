"""NVTX ranges around steps, which Nsight Systems shows above the kernels that ran in them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.wrapped import WrappedRunner
from runtime.denoising import Denoising
from runtime.errors import BackendUnavailableError

LIBRARIES = ("libnvtx3interop.so.1", "libnvToolsExt.so.1")
"""C libraries with the same functions: of CUDA 13 and 12.9, and of earlier releases."""


class Ranges(NamedTuple):
    """Begins a range of a name, and ends the last one begun."""

    push: Callable[[str], Any]
    pop: Callable[[], Any]


def find_ranges() -> Ranges:
    """NVTX through its Python package, or through CUDA's C library.

    Raises:
        BackendUnavailableError: neither is there.
    """
    try:
        import nvtx
    except ImportError:
        return _from_library()
    return Ranges(nvtx.push_range, nvtx.pop_range)


def _from_library() -> Ranges:
    for name in LIBRARIES:
        try:
            return _ranges_of(ctypes.CDLL(name))
        except OSError:
            continue
    raise BackendUnavailableError(
        f"nvtx=True: neither the package nvtx nor {' or '.join(LIBRARIES)} can be loaded; "
        "pip install nvtx"
    )


def _ranges_of(library: ctypes.CDLL) -> Ranges:
    return Ranges(lambda name: library.nvtxRangePushA(name.encode()), library.nvtxRangePop)


class MarkedRunner(WrappedRunner):
    """Puts a range around every step, named after its graph."""

    def __init__(self, inner: StepRunner, ranges: Ranges) -> None:
        super().__init__(inner)
        self._ranges = ranges

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        self._ranges.push(graph)
        try:
            return super()._run(graph, feeds)
        finally:
            self._ranges.pop()

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        self._ranges.push(self.manifest.graph(step.kind))
        try:
            return super().denoise(step, head_cond, images, seed)
        finally:
            self._ranges.pop()
