"""Where the time of a generation goes: a runner that times its steps and what lies between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.wrapped import WrappedRunner
from runtime.denoising import DENOISERS, Denoising

Track = Literal["step", "host"]
PASSES = ("ns", "mask", "ns_prefix", *DENOISERS.values())
"""Kinds of graph whose results the host samples from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time, in milliseconds since `TimedRunner.start`.

    Attributes:
        name: of a step its graph, also where all calls of a denoiser run at once. On the host
            "sampling" (from the result of a pass or of a denoiser to the next step), "download"
            (waiting for a step's result and copying it), or "other".
        track: "step" is timed by the runner's own clock, CUDA events where it has a GPU, and
            includes the copying of inputs; host spans lie beside or between steps.
    """

    name: str
    track: Track
    start_ms: float
    ms: float


class TimedRunner(WrappedRunner):
    """Times every step without waiting for it. Call `start`, generate, and then `spans`."""

    def __init__(self, inner: StepRunner) -> None:
        super().__init__(inner)
        self.start()

    def start(self) -> None:
        """Forgets earlier spans; times count from here."""
        self._steps: list[tuple[str, Any, Any]] = []
        self._host: list[Span] = []
        self._after_pass = False
        self._origin = self.inner.mark()
        self._begin = self._since = time.perf_counter()

    def spans(self) -> list[Span]:
        """Everything since `start`, after waiting for the last step."""
        self._close_gap()
        steps = [
            Span(
                name=graph,
                track="step",
                start_ms=self.elapsed_ms(self._origin, begin),
                ms=self.elapsed_ms(begin, end),
            )
            for graph, begin, end in self._steps
        ]
        return [*steps, *self._host]

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        self._close_gap()
        begin = self.mark()
        results = super()._run(graph, feeds)
        self._steps.append((graph, begin, self.mark()))
        self._after_pass = self.manifest.graphs[graph].kind in PASSES
        self._since = time.perf_counter()
        return results

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        self._close_gap()
        begin = self.mark()
        tokens = super().denoise(step, head_cond, images, seed)
        if tokens is not None:
            self._steps.append((self.manifest.graph(step.kind), begin, self.mark()))
            self._after_pass = False
            self._since = time.perf_counter()
        return tokens

    def numpy(self, value: Any) -> np.ndarray:
        begin = time.perf_counter()
        array = super().numpy(value)
        self._since = time.perf_counter()
        self._add("download", begin, self._since)
        return array

    def _close_gap(self) -> None:
        """Notes what the host did since the last step or download."""
        self._add("sampling" if self._after_pass else "other", self._since, time.perf_counter())

    def _add(self, name: str, begin: float, end: float) -> None:
        self._host.append(
            Span(
                name=name,
                track="host",
                start_ms=(begin - self._begin) * 1e3,
                ms=(end - begin) * 1e3,
            )
        )
