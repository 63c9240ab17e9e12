"""One graph to one plan, or to a plan per stage where TensorRT cannot run it as one engine."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends.trt_build import BuildJob, BuildReport
from runtime.engine_plan import EngineSpec, resolve, with_totals
from runtime.errors import BackendUnavailableError, EngineBuildError
from runtime.stages import Stage

if TYPE_CHECKING:
    from runtime.backends.onnx_stages import GraphCutter, Part

logger = logging.getLogger(__name__)

Build = Callable[[BuildJob], BuildReport]


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan that was written, and the part of the graph that it runs; None = all."""

    file: Path
    stage: Stage | None
    report: BuildReport


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """Plans of one graph in the order in which they run; `why_staged` is empty for a whole one."""

    plans: tuple[BuiltPlan, ...]
    why_staged: str


def build_graph(build: Build, job: BuildJob, spec: EngineSpec, count: int | None) -> BuiltGraph:
    """Builds a graph whole or in stages.

    Args:
        job: builds it whole; with `try_context`, what cannot run here is cut in two.
        count: stages to cut it into, if there are so many places to cut; None = as few as can run.

    Raises:
        EngineBuildError: it cannot be built, or a part that cannot be cut further cannot run here.
        BackendUnavailableError: it is to be cut, and the package onnx is missing.
    """
    if count is None or count == 1:
        report = build(job)
        if report.makes_context is not False:
            return BuiltGraph((BuiltPlan(Path(job.plan), None, report),), "")
        Path(job.plan).unlink()
        why = f"no execution context can be made for the whole graph{_quoted(report)}"
        logger.warning("%s: %s; it is built in stages", spec.graph, why)
    else:
        why = f"{count} stages were asked for"
    cutter = _open(Path(job.graph))
    with tempfile.TemporaryDirectory(prefix="hmar-stages-") as folder:
        parts = cutter.cut(cutter.whole(), count or 2)
        plans = _build_parts(build, job, spec, cutter, parts, Path(folder))
    if count is not None and len(plans) > len(parts):
        why += f", {len(plans) - len(parts)} more were needed to run here"
    logger.info("%s: %d stages: %s", spec.graph, len(plans), why)
    return BuiltGraph(plans, why)


def _build_parts(
    build: Build,
    job: BuildJob,
    spec: EngineSpec,
    cutter: GraphCutter,
    parts: list[Part],
    folder: Path,
) -> tuple[BuiltPlan, ...]:
    """Plans of parts, each cut in two until it can run."""
    plans: list[BuiltPlan] = []
    while parts:
        part, *parts = parts
        file = Path(job.plan).with_suffix(f".{len(plans):02d}.plan")
        model = folder / f"{file.stem}.onnx"
        model.write_bytes(cutter.extract(part).SerializeToString())
        sizes = [with_totals(profile) for profile in spec.profiles]
        profiles = tuple({i.name: resolve(i, dims) for i in part.stage.inputs} for dims in sizes)
        report = build(dataclasses.replace(job, part=str(model), plan=str(file), profiles=profiles))
        if report.makes_context is not False:
            plans.append(BuiltPlan(file, part.stage, report))
            continue
        file.unlink()
        halves = cutter.cut(part, 2)
        if len(halves) == 1:
            names = ", ".join(output.name for output in part.stage.outputs)
            raise EngineBuildError(
                f"{job.graph}: no execution context can be made for what computes {names} "
                f"alone{_quoted(report)}; leave this graph out (--leave-out {spec.kind}) and place "
                f"it elsewhere (--place {spec.kind}=ort-cpu)"
            )
        parts = [*halves, *parts]
    return tuple(plans)


def _open(graph: Path) -> GraphCutter:
    try:
        from runtime.backends.onnx_stages import GraphCutter
    except ImportError as error:
        raise BackendUnavailableError(
            f"{graph}: to cut it into stages, the package onnx is needed ({error}): "
            "pip install onnx"
        ) from error
    return GraphCutter.open(graph)


def _quoted(report: BuildReport) -> str:
    """The last thing that TensorRT said."""
    return f" ({report.messages[-1]})" if report.messages else ""
