"""Times of whole generations and of their parts, held against a machine's ceilings."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.bundle import Manifest
from runtime.config import SamplingConfig
from runtime.himar_config import HiMARSamplingConfig
from runtime.pipeline import Pipeline
from runtime.timing import Span, TimedRunner
from scripts.ceilings import Ceilings
from scripts.family_work import planned_steps, step_work
from scripts.generation_work import Work, total

PART_OF_KIND = {
    "cond": "conditioning", "ns": "next-scale passes", "mask": "masked passes",
    "mask_input": "quantizer", "quant": "quantizer", "decode": "decode",
    "pivot": "pivot passes", "dense": "dense passes",
    "denoise_pivot": "pivot denoiser", "denoise_pivot_unguided": "pivot denoiser",
    "denoise_dense": "dense denoiser", "denoise_dense_unguided": "dense denoiser",
}  # fmt: skip
SAMPLING, OTHER, WHOLE = "sampling", "other", "stepped"
MIN_RUNS, MAX_STEPPED_RUNS = 3, 10
Row = dict[str, Any]
Sampling = SamplingConfig | HiMARSamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure.

    Attributes:
        warmup: runs that are not counted.
        runs: runs of one measurement; fewer, but not below 3, once they took `max_seconds`.
    """

    warmup: int = 2
    runs: int = 20
    max_seconds: float = 60

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.runs < 1:
            raise ValueError(
                f"warmup must be >= 0 and runs >= 1, got {self.warmup} and {self.runs}"
            )

    def is_done(self, runs: int, seconds: float) -> bool:
        return runs >= self.runs or (runs >= MIN_RUNS and seconds > self.max_seconds)


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    p10, median, p90 = np.percentile(times_ms, (10, 50, 90))
    return {"median_ms": float(median), "p10_ms": float(p10), "p90_ms": float(p90)}


def achieved(work: Work, ms: float, ceilings: Ceilings | None) -> dict[str, float]:
    """Rates of some work, and which share of the time the ceilings would leave of it."""
    rates = {"tflops": work.flops / ms * 1e-9, "gbytes_per_s": work.nbytes / ms * 1e-6}
    if ceilings is not None:
        rates["floor_share"] = ceilings.floor_ms(work.flops, work.nbytes) / ms
    return rates


def time_generations(
    generate: Callable[[Sequence[int]], object], labels: Sequence[int], effort: Effort
) -> Row:
    """Wall-clock time of generations, labels in and uint8 images on the host out."""
    first_ms, *_ = (_wall_ms(generate, labels) for _ in range(1 + effort.warmup))
    times_ms: list[float] = []
    while not effort.is_done(len(times_ms), sum(times_ms) * 1e-3):
        times_ms.append(_wall_ms(generate, labels))
    row = {"batch": len(labels), "first_ms": first_ms, "runs": len(times_ms), **summary(times_ms)}
    return row | {"images_per_s": len(labels) / row["median_ms"] * 1e3}


def _wall_ms(generate: Callable[[Sequence[int]], object], labels: Sequence[int]) -> float:
    start = time.perf_counter()
    generate(labels)
    return (time.perf_counter() - start) * 1e3


def work_by_part(manifest: Manifest, sampling: Sampling, batch: int) -> dict[str, tuple[int, Work]]:
    """Number of steps and their work, for each part of a generation."""
    parts: dict[str, tuple[int, Work]] = {}
    for step, count in Counter(planned_steps(manifest, sampling)).items():
        part = PART_OF_KIND[manifest.graphs[step.graph].kind]
        calls, work = parts.get(part, (0, Work()))
        once = total(step_work(manifest, step, batch).values())
        parts[part] = calls + count, work + once * count
    return parts


def time_parts(
    pipeline: Pipeline,
    labels: Sequence[int],
    sampling: Sampling,
    effort: Effort,
    ceilings: Ceilings | None,
) -> tuple[dict[str, Row], list[Span]]:
    """Times of a generation's parts, step by step, and the spans of the last one.

    Steps run one after the other here even where the runner could replay a whole generation.
    "sampling" is what the host does between a pass, or a call of a denoiser, and the next step;
    "other" is the rest of the wall-clock time: copies, launches, the interpreter.
    """
    timed = TimedRunner(pipeline.runner)
    stepped = Pipeline.of(timed, pipeline.max_batch)
    effort = replace(effort, runs=min(effort.runs, MAX_STEPPED_RUNS))
    times_ms: dict[str, list[float]] = defaultdict(list)
    spans: list[Span] = []

    def generate(labels: Sequence[int]) -> None:
        stepped.generate(labels, sampling=sampling)

    generate(labels)
    whole_ms: list[float] = []
    while not effort.is_done(len(whole_ms), sum(whole_ms) * 1e-3):
        timed.start()
        whole_ms.append(_wall_ms(generate, labels))
        spans = timed.spans()
        for part, ms in _sum_parts(pipeline.manifest, spans, whole_ms[-1]).items():
            times_ms[part].append(ms)
    works = work_by_part(pipeline.manifest, sampling, len(labels))
    parts: dict[str, Row] = {}
    for part, ms in times_ms.items():
        parts[part] = summary(ms)
        if part in works:
            calls, work = works[part]
            parts[part] |= {"calls": calls, **achieved(work, parts[part]["median_ms"], ceilings)}
    return parts, spans


def _sum_parts(manifest: Manifest, spans: Sequence[Span], whole_ms: float) -> dict[str, float]:
    parts: dict[str, float] = defaultdict(float)
    for span in spans:
        if span.track == "step":
            parts[PART_OF_KIND[manifest.graphs[span.name].kind]] += span.ms
        elif span.name == SAMPLING:
            parts[SAMPLING] += span.ms
    return {**parts, OTHER: max(0.0, whole_ms - sum(parts.values())), WHOLE: whole_ms}
