"""Spans of a generation: steps by the runner's clock, and what the host does between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from runtime import timing
from runtime.backends.fake import FakeRunner
from runtime.timing import Span, TimedRunner
from tests.unit.runtime.manifests import manifest

FEEDS = {"cond": np.zeros(1), "ada_ns": np.zeros(1)}


class QueuedRunner(FakeRunner):
    """Its clock is a device's: it stands still but for the two milliseconds that a step takes."""

    def __init__(self) -> None:
        array = np.zeros(1, np.float32)
        super().__init__(
            manifest(), {"ns": lambda spec, feeds: [array], "quant": lambda s, f: [array, array]}
        )
        self.device_ms = 0.0

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        self.device_ms += 2
        return super()._run(graph, feeds)

    def mark(self) -> float:
        return self.device_ms

    def elapsed_ms(self, start: float, stop: float) -> float:
        return stop - start


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A host clock that goes on by one second whenever it is read."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(timing.time, "perf_counter", tick)
    return now


def test_steps_sampling_and_downloads(seconds: list[float]) -> None:
    timed = TimedRunner(QueuedRunner())
    timed.start()
    logits = timed.run("ns0", FEEDS)["logits"]
    timed.numpy(logits)
    timed.run("quant0", {"tokens": np.zeros(1), "f_hat": np.zeros(1)})
    spans = timed.spans()
    assert spans[:2] == [
        Span(name="ns0", track="step", start_ms=0, ms=2),
        Span(name="quant0", track="step", start_ms=2, ms=2),
    ]
    host = [(span.name, span.start_ms, span.ms) for span in spans[2:]]
    assert host == [
        ("other", 0, 1000),
        ("download", 3000, 1000),
        ("sampling", 4000, 1000),
        ("other", 6000, 1000),
    ]


def test_start_forgets(seconds: list[float]) -> None:
    timed = TimedRunner(QueuedRunner())
    timed.run("ns0", FEEDS)
    timed.start()
    assert [(span.name, span.track) for span in timed.spans()] == [("other", "host")]


def test_the_wrapped_runner_answers_everything() -> None:
    inner = QueuedRunner()
    inner.max_batch = 3
    timed = TimedRunner(inner)
    assert (timed.name, timed.max_batch, timed.manifest) == ("fake", 3, inner.manifest)
