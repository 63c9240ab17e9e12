"""A runner around another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backends.base import StepRunner
from runtime.denoising import Denoising


class WrappedRunner(StepRunner):
    """Hands every call on to `inner` but `generate`: subclasses watch the steps."""

    def __init__(self, inner: StepRunner) -> None:
        super().__init__(inner.manifest)
        self.inner, self.max_batch = inner, inner.max_batch

    @property
    def name(self) -> str:
        return self.inner.name

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        return list(self.inner.run(graph, feeds).values())

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        return self.inner.denoise(step, head_cond, images, seed)

    def numpy(self, value: Any) -> np.ndarray:
        return self.inner.numpy(value)

    def mark(self) -> Any:
        return self.inner.mark()

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        return self.inner.elapsed_ms(start, stop)

    def close(self) -> None:
        self.inner.close()
