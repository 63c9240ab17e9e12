"""Engines of a bundle on disk: built, found again by what they were built from, and checked.

    engines/<gpu>_<library><version>_<precision>/
      engines.json     what each plan was built from and for
      *.plan           serialized engines
      timing.cache     kernel timings, where the library keeps them

A folder is written beside its place and then renamed, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.trt_build import BuildJob, build_engine
from runtime.bundle import Bundle, Kind
from runtime.engine_manifest import (
    ENGINES,
    ENGINES_FILE,
    FORMAT_VERSION,
    FUNCTION_BODY,
    EngineEntry,
    EngineFolder,
    EngineManifest,
    PlanEntry,
)
from runtime.engine_plan import (
    ATTENTION_KINDS,
    STAGED,
    EngineOptions,
    EngineSpec,
    nbytes,
    plan_engines,
    resolve,
    with_totals,
)
from runtime.engine_stages import Build, BuiltPlan, build_graph
from runtime.engine_target import Target
from runtime.errors import EngineBuildError, EngineIncompatibleError

logger = logging.getLogger(__name__)

TIMING_CACHE = "timing.cache"
MAX_JOBS = 8

Progress = Callable[[str, int, int], None]
"""(stage and item, done, total)."""


def quiet(item: str, done: int, total: int) -> None:
    """Reports nothing."""


def engine_key(bundle: Bundle, spec: EngineSpec, target: Target, options: EngineOptions) -> str:
    """SHA-256 over all that a plan depends on."""
    parts = {
        "format": FORMAT_VERSION,
        "graph": bundle.manifest.graphs[spec.graph].sha256,
        "weights": bundle.manifest.weights.sha256,
        "library": target.flavour,
        "version": target.version,
        "gpus": target.gpus,
        "attention": target.attention if spec.kind in ATTENTION_KINDS else None,
        "profiles": spec.profiles,
        "precision": bundle.manifest.precision,
        "stages": options.stages.get(spec.kind),
        "workspace": options.workspace_bytes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def mismatches(
    found: EngineManifest, bundle: Bundle, target: Target, options: EngineOptions
) -> tuple[str, ...]:
    """What keeps a folder of engines from being used as asked: sentences with found and needed."""
    manifest, reasons = bundle.manifest, []

    def compare(what: str, have: Any, want: Any) -> None:
        if have != want:
            reasons.append(f"{what}: found {have}, needed {want}")

    compare(
        "TensorRT",
        f"{found.library} {found.library_version}",
        f"{target.flavour} {target.version}",
    )
    compare("GPUs", ", ".join(found.gpus), ", ".join(target.gpus))
    compare("precision", found.precision, manifest.precision)
    compare("layout", found.layout, options.layout)
    compare("attention", found.attention, target.attention)
    compare("batches", _listed(found.batches), _listed(options.batches))
    compare("stages", _stages(found.stages), _stages(options.stages))
    compare("workspace", _mib(found.workspace_bytes), _mib(options.workspace_bytes))
    compare(
        "weights", f"sha256 {found.weights_sha256[:12]}…", f"sha256 {manifest.weights.sha256[:12]}…"
    )
    for spec in plan_engines(manifest, options):
        entry, graph = found.engines.get(spec.graph), manifest.graphs[spec.graph]
        if entry is None:
            reasons.append(f"{spec.graph}: no engine")
        elif entry.graph_sha256 != graph.sha256:
            reasons.append(f"{spec.graph}: the graph has changed since its engine was built")
        elif not reasons and entry.profiles != spec.profiles:
            reasons.append(
                f"{spec.graph}: found {len(entry.profiles)} profiles, needed {len(spec.profiles)}"
            )
    return tuple(reasons)


def _listed(batches: Sequence[int]) -> str:
    return ", ".join(map(str, batches))


def _stages(counts: Mapping[Kind, int]) -> str:
    return ", ".join(f"{kind}={counts[kind]}" for kind in sorted(counts)) or "as few as can run"


def _mib(size: int | None) -> str:
    return "no limit" if size is None else f"{size / (1 << 20):.0f} MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What a build made.

    Attributes:
        built: engines built now; the others were there already.
    """

    engines: EngineFolder
    built: tuple[str, ...]
    io_nbytes: int
    seconds: float

    def summary(self) -> str:
        """A few lines for people."""
        manifest = self.engines.manifest
        entries = manifest.engines.values()
        weights = sum(e.nbytes for e in entries)
        with_plugin = sum(e.attention not in (None, FUNCTION_BODY) for e in entries)
        with_attention = sum(e.attention is not None for e in entries)
        known = [max(e.activation_nbytes) for e in entries if e.activation_nbytes]
        staged = ", ".join(
            f"{graph} in {len(entry.plans)} ({entry.why_staged})"
            for graph, entry in manifest.engines.items()
            if entry.why_staged
        )
        activations = (
            f"{max(known) / 1e6:.1f} MB, shared by all engines"
            if known
            else "known when the engines are loaded on their GPU"
        )
        return "\n".join(
            [
                f"engines      {self.engines.folder}",
                f"library      {manifest.library} {manifest.library_version}, "
                f"for {', '.join(manifest.gpus)}",
                f"built        {len(self.built)} of {len(entries)} engines "
                f"({sum(len(e.profiles) for e in entries)} profiles) in {self.seconds:.1f} s, "
                f"{len(entries) - len(self.built)} up to date",
                f"batches      {_listed(manifest.batches)}",
                f"attention    plugin in {with_plugin} of {with_attention} engines "
                "that have attention, function body in the others",
                f"stages       {staged or 'none, all graphs are whole'}",
                f"plans        {weights / 1e6:.1f} MB, weights once per engine",
                f"activations  {activations}",
                f"in and out   {self.io_nbytes / 1e6:.1f} MB at the largest batch",
            ]
        )


def build_engines(
    bundle: Bundle,
    target: Target,
    options: EngineOptions,
    *,
    force: bool = False,
    require_plugin: bool = False,
    jobs: int | None = None,
    progress: Progress = quiet,
    build: Build = build_engine,
) -> EngineReport:
    """Builds what is missing of a bundle's engines.

    Args:
        force: build all engines again; otherwise a folder that fits is kept, and one that does not
            is an error that says why.
        require_plugin: fail where an attention layer would not use the plugin.
        jobs: builds at a time; default: 1 where builds measure kernels on the GPU, else up to 8.
        build: replaces the build of one engine, for tests.

    Raises:
        EngineIncompatibleError: the folder is there and does not fit; see `force`.
        EngineBuildError: an engine cannot be built or written; what was there stays as it was.
    """
    if jobs is None:
        measures = target.flavour == "tensorrt"
        jobs = 1 if measures else min(MAX_JOBS, os.cpu_count() or 1)
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    start = time.perf_counter()
    manifest = bundle.manifest
    name = target.folder_name(manifest.precision, options.layout)
    folder = bundle.folder / ENGINES / name
    specs = plan_engines(manifest, options)
    io_nbytes = sum(_io_nbytes(bundle, spec) for spec in specs)
    if not force and folder.exists():
        existing = _check_existing(folder, bundle, target, options, progress)
        seconds = time.perf_counter() - start
        return EngineReport(engines=existing, built=(), io_nbytes=io_nbytes, seconds=seconds)

    def build_one(spec: EngineSpec, into: Path) -> EngineEntry:
        return _build(build, bundle, spec, target, options, into, require_plugin)

    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as temporary:
            partial = Path(temporary) / name
            partial.mkdir()
            if (folder / TIMING_CACHE).is_file():
                shutil.copy(folder / TIMING_CACHE, partial)
            entries = _build_all(partial, specs, build_one, jobs, progress)
            made = _manifest(bundle, target, options, entries)
            (partial / ENGINES_FILE).write_text(made.to_json(), encoding="utf-8")
            _put_in_place(partial, folder, Path(temporary) / "old")
    except OSError as error:
        raise EngineBuildError(
            f"{folder}: cannot be written: {error.strerror or error}; nothing was changed"
        ) from error
    return EngineReport(
        engines=EngineFolder(folder=folder, manifest=made),
        built=tuple(made.engines),
        io_nbytes=io_nbytes,
        seconds=time.perf_counter() - start,
    )


def _build_all(
    folder: Path,
    specs: Sequence[EngineSpec],
    build_one: Callable[[EngineSpec, Path], EngineEntry],
    jobs: int,
    progress: Progress,
) -> dict[str, EngineEntry]:
    """Entries by graph, in the order of the specs."""
    entries: dict[str, EngineEntry] = {}

    def add(spec: EngineSpec, entry: EngineEntry) -> None:
        entries[spec.graph] = entry
        progress(f"building {spec.graph}", len(entries), len(specs))

    progress("building", 0, len(specs))
    if jobs == 1 or not specs:
        # in this thread, so that an interrupt ends the running build
        for spec in specs:
            add(spec, build_one(spec, folder))
        return entries
    with ThreadPoolExecutor(jobs) as pool:
        # those with the most profiles take longest
        queue = sorted(specs, key=lambda spec: -len(spec.profiles))
        running = {pool.submit(build_one, spec, folder): spec for spec in queue}
        try:
            for future in as_completed(running):
                add(running[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {spec.graph: entries[spec.graph] for spec in specs}


def _manifest(
    bundle: Bundle, target: Target, options: EngineOptions, entries: dict[str, EngineEntry]
) -> EngineManifest:
    return EngineManifest(
        format_version=FORMAT_VERSION,
        library=target.flavour,
        library_version=target.version,
        gpus=target.gpus,
        attention=target.attention,
        precision=bundle.manifest.precision,
        layout=options.layout,
        batches=options.batches,
        stages=dict(options.stages),
        workspace_bytes=options.workspace_bytes,
        weights_sha256=bundle.manifest.weights.sha256,
        engines=entries,
    )


def _put_in_place(partial: Path, folder: Path, old: Path) -> None:
    """Renames the new folder to its place; what was there comes back if that fails."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(old, folder)
        raise


def _check_existing(
    folder: Path, bundle: Bundle, target: Target, options: EngineOptions, progress: Progress
) -> EngineFolder:
    """The folder, if all its engines are what would be built."""
    existing = EngineFolder.open(folder)
    reasons = mismatches(existing.manifest, bundle, target, options)
    if not reasons:
        specs = plan_engines(bundle.manifest, options)
        reasons = tuple(
            f"{spec.graph}: built from other inputs"
            for spec in specs
            if existing.manifest.engines[spec.graph].key
            != engine_key(bundle, spec, target, options)
        )
    if reasons:
        raise EngineIncompatibleError(
            f"{folder}: the engines there do not fit: {'; '.join(reasons)}. "
            "Use --force to build them again in their place",
            reasons,
        )
    for i, graph in enumerate(existing.manifest.engines):
        progress(f"checking {graph}", i + 1, len(existing.manifest.engines))
        for stage in range(len(existing.manifest.engines[graph].plans)):
            existing.read_plan(graph, stage)
    return existing


def _io_nbytes(bundle: Bundle, spec: EngineSpec) -> int:
    """Bytes of the inputs and outputs of one engine, at its largest profile."""
    graph = bundle.manifest.graphs[spec.graph]
    sizes = []
    for profile in spec.profiles:
        dims = with_totals(profile)
        sizes.append(sum(nbytes(tensor, dims) for tensor in (*graph.inputs, *graph.outputs)))
    return max(sizes)


def _build(
    build: Build,
    bundle: Bundle,
    spec: EngineSpec,
    target: Target,
    options: EngineOptions,
    folder: Path,
    require_plugin: bool,
) -> EngineEntry:
    graph = bundle.manifest.graphs[spec.graph]
    has_attention, count = spec.kind in ATTENTION_KINDS, options.stages.get(spec.kind)
    job = BuildJob(
        flavour=target.flavour,
        graph=str(bundle.path(graph)),
        plan=str(folder / f"{spec.graph}.plan"),
        profiles=tuple(
            {tensor.name: resolve(tensor, dims) for tensor in graph.inputs}
            for dims in spec.profiles
        ),
        targets=target.gpus if target.is_named else None,
        is_for_this_gpu=target.is_for_this_gpu,
        try_context=target.is_for_this_gpu and spec.kind in STAGED and count != 1,
        workspace_bytes=options.workspace_bytes,
        plugin=str(target.plugin) if target.plugin and has_attention else None,
        timing_cache=str(folder / TIMING_CACHE),
    )
    built = build_graph(build, job, spec, count)
    has_plugin = any(plan.report.plugin_layers for plan in built.plans)
    if has_attention and target.plugin and not has_plugin:
        message = (
            f"{spec.graph}: the parser of {target.flavour} {target.version} did not take the "
            "attention plugin"
        )
        if require_plugin:
            raise EngineBuildError(f"{message}; use the function body (--attention function)")
        logger.warning("%s; the engine runs the function body", message)
    entry = EngineEntry(
        graph_sha256=graph.sha256,
        key=engine_key(bundle, spec, target, options),
        attention=(target.attention if has_plugin else FUNCTION_BODY) if has_attention else None,
        profiles=spec.profiles,
        plans=tuple(_plan_entry(plan) for plan in built.plans),
        why_staged=built.why_staged,
        build_seconds=round(sum(plan.report.seconds for plan in built.plans), 3),
    )
    logger.info(
        "engine %s: %.1f s, %.1f MiB", spec.graph, entry.build_seconds, entry.nbytes / (1 << 20)
    )
    return entry


def _plan_entry(plan: BuiltPlan) -> PlanEntry:
    with plan.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PlanEntry(
        file=plan.file.name,
        sha256=digest,
        nbytes=plan.file.stat().st_size,
        stage=plan.stage,
        activation_nbytes=plan.report.activation_nbytes,
    )
