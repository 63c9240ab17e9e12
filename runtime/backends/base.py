"""What the sampling loop asks of an inference library."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.bundle import Manifest
from runtime.config import SamplingConfig
from runtime.denoising import Denoising


class StepRunner(ABC):
    """Runs graphs of a bundle by name.

    Values that come out of `run` may be the library's own; they can be fed again as they are, and
    `numpy` copies them to the host.
    """

    max_batch: int | None = None
    """Largest number of images in one pass, where the backend has a limit."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @property
    @abstractmethod
    def name(self) -> str:
        """The backend as in `BackendConfig.name`, with where other graphs run, if any do."""

    def run(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of a graph by name.

        Args:
            graph: name in the manifest.
            feeds: a NumPy array or an output of an earlier run for every input.

        Raises:
            ValueError: inputs are missing or unknown.
            BackendError: the library fails.
        """
        spec = self.manifest.graphs[graph]
        wanted = [i.name for i in spec.inputs]
        if set(wanted) != set(feeds):
            raise ValueError(f"graph {graph} takes {wanted}, got {sorted(feeds)}")
        results = self._run(graph, feeds)
        return dict(zip((o.name for o in spec.outputs), results, strict=True))

    @abstractmethod
    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs in the manifest's order."""

    @abstractmethod
    def numpy(self, value: Any) -> np.ndarray:
        """A value on the host."""

    def generate(
        self, labels: Sequence[int], images: Sequence[int], seed: int, sampling: SamplingConfig
    ) -> np.ndarray | None:
        """A whole generation at once, (B, H, W, 3) uint8; None where the backend goes step by step.

        Args:
            labels: classes 0..num_classes - 1, or num_classes = no class; at most `max_batch`.
            images, seed: name the random numbers, see `runtime.philox`.
            sampling: HMAR's, with the context "scale".
        """
        return None

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        """The tokens (B, n, C) float32 of a Hi-MAR step; None where the backend goes call by call.

        Args:
            head_cond: an array or an output of an earlier run, (N, n, width): N = B, or 2B with the
                conditional half first.
            images, seed: name the random numbers, see `runtime.normals`.
        """
        return None

    def mark(self) -> Any:
        """The present point in the runner's work, for `elapsed_ms`."""
        return time.perf_counter()

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Milliseconds between two marks, on the device where work is queued; waits for it."""
        return (stop - start) * 1e3

    def close(self) -> None:
        """Frees the library's resources, if it holds any; the runner cannot be used afterwards."""
        return None
