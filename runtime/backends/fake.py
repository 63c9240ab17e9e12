"""A backend for tests of the loop: graphs are NumPy functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime.backends.base import StepRunner
from runtime.bundle import GraphSpec, Manifest

GraphFunction = Callable[[GraphSpec, Mapping[str, np.ndarray]], list[np.ndarray]]


class FakeRunner(StepRunner):
    """Calls one function per graph kind and keeps the order of calls in `calls`."""

    def __init__(self, manifest: Manifest, functions: Mapping[str, GraphFunction]) -> None:
        super().__init__(manifest)
        self.functions = functions
        self.calls: list[str] = []

    @property
    def name(self) -> str:
        return "fake"

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        self.calls.append(graph)
        spec = self.manifest.graphs[graph]
        return self.functions[spec.kind](spec, feeds)

    def numpy(self, value: Any) -> np.ndarray:
        return value
