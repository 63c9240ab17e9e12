"""Engines of a bundle on disk: built, found again by what they were built from, and checked.

    engines/<gpu>_<library><version>_<precision>/
      engines.json     what each plan was built from and for
      *.plan           serialized engines
      timing.cache     kernel timings, where the library keeps them

A folder is written beside its place and then renamed, so that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from runtime.backends.trt_build import BuildJob, BuildReport, build_engine
from runtime.backends.trt_library import SHORT, Flavour
from runtime.bundle import Bundle, FileSpec
from runtime.engine_plan import (
    ATTENTION_KINDS,
    Dims,
    EngineOptions,
    EngineSpec,
    nbytes,
    plan_engines,
    resolve,
    with_totals,
)
from runtime.errors import EngineBuildError, EngineIncompatibleError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
ENGINES, ENGINES_FILE, TIMING_CACHE = "engines", "engines.json", "timing.cache"
FUNCTION_BODY = "function body"
Attention = Literal["auto", "plugin", "function"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)

Progress = Callable[[str, int, int], None]
"""(stage and item, done, total)."""
Build = Callable[[BuildJob], BuildReport]


def quiet(item: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What engines are built with and for; the same for all engines of a folder.

    Attributes:
        flavour, version: the TensorRT.
        gpus: compute capabilities, as `sm80`.
        ahead_of_time: built for these by name rather than for the GPU of this machine.
        attention: "plugin" and the version of its library, or "function body".
        plugin: path of the plugin library; not part of what engines are compared by.
    """

    flavour: Flavour
    version: str
    gpus: tuple[str, ...]
    ahead_of_time: bool = False
    attention: str = FUNCTION_BODY
    plugin: Path | None = None

    def folder_name(self, precision: str, layout: str) -> str:
        suffix = "" if layout == "profiles" else f"_{layout}"
        return f"{'-'.join(self.gpus)}_{SHORT[self.flavour]}{self.version}_{precision}{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry(FileSpec):
    """One engine: its plan, relative to the engine folder, and what it was built from.

    Attributes:
        key: SHA-256 over all that the plan depends on.
        attention: "plugin" and its version where it runs the attention layers, "function body"
            where standard layers do, None for a graph without attention.
        profiles: sizes of the symbolic dimensions.
        activation_nbytes: scratch memory of every profile; None = known only on the GPU.
    """

    graph_sha256: str
    key: str
    attention: str | None
    profiles: tuple[Dims, ...]
    activation_nbytes: tuple[int, ...] | None
    build_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """What `engines.json` says."""

    format_version: int
    library: Flavour
    library_version: str
    gpus: tuple[str, ...]
    attention: str
    precision: str
    layout: str
    batches: tuple[int, ...]
    workspace_bytes: int | None
    weights_sha256: str
    engines: dict[str, EngineEntry]

    def to_json(self) -> str:
        data = dataclasses.asdict(self)
        engines = data.pop("engines")
        head = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in data.items()]
        lines = ",\n".join(f"    {json.dumps(n)}: {json.dumps(e)}" for n, e in engines.items())
        return "{\n" + ",\n".join([*head, f'  "engines": {{\n{lines}\n  }}']) + "\n}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFolder:
    """A folder of engines whose manifest has been read."""

    folder: Path
    manifest: EngineManifest

    @classmethod
    def open(cls, folder: Path) -> EngineFolder:
        """Reads the manifest; no plan is read.

        Raises:
            EngineIncompatibleError: it is missing, unreadable or of another version.
        """
        path = folder / ENGINES_FILE
        try:
            return cls(folder=folder, manifest=_parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineIncompatibleError(
                f"{path}: no manifest of engines that this release reads ({error}); "
                "remove the folder and run scripts/build_engines.py"
            ) from error

    def read_plan(self, graph: str, *, check: bool = True) -> bytes:
        """The serialized engine of a graph.

        Args:
            check: compare its SHA-256 with the manifest (about a second per GB).

        Raises:
            EngineIncompatibleError: it is missing or damaged.
        """
        entry = self.manifest.engines[graph]
        path = self.folder / entry.file
        again = "build it again with scripts/build_engines.py --force"
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineIncompatibleError(
                f"{path}: cannot be read, though {ENGINES_FILE} lists it ({error}); {again}"
            ) from error
        if len(plan) != entry.nbytes:
            raise EngineIncompatibleError(
                f"{path}: damaged: {len(plan)} bytes, {ENGINES_FILE} says {entry.nbytes}; {again}"
            )
        if check and (found := hashlib.sha256(plan).hexdigest()) != entry.sha256:
            raise EngineIncompatibleError(
                f"{path}: damaged: sha256 {found[:12]}…, {ENGINES_FILE} says "
                f"{entry.sha256[:12]}…; {again}"
            )
        return plan


def _parse(text: str) -> EngineManifest:
    data = json.loads(text)
    if data.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"format version {data.get('format_version')!r}, this release reads {FORMAT_VERSION}"
        )
    engines = {
        name: EngineEntry(
            **{
                **entry,
                "profiles": tuple(dict(p) for p in entry["profiles"]),
                "activation_nbytes": _tuple_or_none(entry["activation_nbytes"]),
            }
        )
        for name, entry in data["engines"].items()
    }
    if escaping := [e.file for e in engines.values() if Path(e.file).name != e.file]:
        raise ValueError(f"plans outside the folder: {escaping}")
    return EngineManifest(
        **{
            **data,
            "gpus": tuple(data["gpus"]),
            "batches": tuple(data["batches"]),
            "engines": engines,
        }
    )


def _tuple_or_none(items: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if items is None else tuple(items)


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
                f"plans        {weights / 1e6:.1f} MB, weights once for all profiles",
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
    jobs: int = 1,
    progress: Progress = quiet,
    build: Build = build_engine,
) -> EngineReport:
    """Builds what is missing of a bundle's engines.

    Args:
        force: build all engines again; otherwise a folder that fits is kept, and one that does not
            is an error that says why.
        require_plugin: fail where an attention layer would not use the plugin.
        jobs: builds at a time; 1 where builds measure kernels on the GPU.
        build: replaces the build of one engine, for tests.

    Raises:
        EngineIncompatibleError: the folder is there and does not fit; see `force`.
        EngineBuildError: an engine cannot be built; what was there stays as it was.
    """
    start = time.perf_counter()
    manifest = bundle.manifest
    name = target.folder_name(manifest.precision, options.layout)
    folder = bundle.folder / ENGINES / name
    specs = plan_engines(manifest, options)
    if not specs:
        raise ValueError("no engines to build: all kinds of graph are left out")
    io_nbytes = sum(_io_nbytes(bundle, spec) for spec in specs)
    if not force and folder.exists():
        existing = _check_existing(folder, bundle, target, options, progress)
        seconds = time.perf_counter() - start
        return EngineReport(engines=existing, built=(), io_nbytes=io_nbytes, seconds=seconds)
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as temporary:
        partial = Path(temporary) / name
        partial.mkdir()
        if (folder / TIMING_CACHE).is_file():
            shutil.copy(folder / TIMING_CACHE, partial)
        entries: dict[str, EngineEntry] = {}
        with ThreadPoolExecutor(jobs) as pool:
            running = {
                pool.submit(
                    _build, build, bundle, spec, target, options, partial, require_plugin
                ): spec
                for spec in specs
            }
            try:
                for future in as_completed(running):
                    entry = future.result()
                    entries[running[future].graph] = entry
                    progress(f"building {running[future].graph}", len(entries), len(specs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        made = EngineManifest(
            format_version=FORMAT_VERSION,
            library=target.flavour,
            library_version=target.version,
            gpus=target.gpus,
            attention=target.attention,
            precision=manifest.precision,
            layout=options.layout,
            batches=options.batches,
            workspace_bytes=options.workspace_bytes,
            weights_sha256=manifest.weights.sha256,
            engines={spec.graph: entries[spec.graph] for spec in specs},
        )
        (partial / ENGINES_FILE).write_text(made.to_json(), encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(partial, folder)
    return EngineReport(
        engines=EngineFolder(folder=folder, manifest=made),
        built=tuple(made.engines),
        io_nbytes=io_nbytes,
        seconds=time.perf_counter() - start,
    )


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
        existing.read_plan(graph)
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
    plan = folder / f"{spec.graph}.plan"
    has_attention = spec.kind in ATTENTION_KINDS
    report = build(
        BuildJob(
            flavour=target.flavour,
            graph=str(bundle.path(graph)),
            plan=str(plan),
            profiles=tuple(
                {tensor.name: resolve(tensor, dims) for tensor in graph.inputs}
                for dims in spec.profiles
            ),
            targets=target.gpus if target.ahead_of_time else None,
            workspace_bytes=options.workspace_bytes,
            plugin=str(target.plugin) if target.plugin and has_attention else None,
            timing_cache=str(folder / TIMING_CACHE),
        )
    )
    if has_attention and target.plugin and not report.plugin_layers:
        message = (
            f"{spec.graph}: the parser of {target.flavour} {target.version} did not take the "
            "attention plugin"
        )
        if require_plugin:
            raise EngineBuildError(f"{message}; use the function body (--attention function)")
        logger.warning("%s; the engine runs the function body", message)
    with plan.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = plan.stat().st_size
    logger.info("engine %s: %.1f s, %.1f MiB", spec.graph, report.seconds, size / (1 << 20))
    return EngineEntry(
        file=plan.name,
        sha256=digest,
        nbytes=size,
        graph_sha256=graph.sha256,
        key=engine_key(bundle, spec, target, options),
        attention=(target.attention if report.plugin_layers else FUNCTION_BODY)
        if has_attention
        else None,
        profiles=spec.profiles,
        activation_nbytes=report.activation_nbytes,
        build_seconds=round(report.seconds, 3),
    )


def built_with(bundle: Bundle, folder: Path | None = None) -> set[Flavour]:
    """The libraries that a bundle has engines of; folders that cannot be read count as none."""
    found: set[Flavour] = set()
    for place in _folders(bundle, folder):
        try:
            found.add(EngineFolder.open(place).manifest.library)
        except EngineIncompatibleError as error:
            logger.info("%s", error)
    return found


def _folders(bundle: Bundle, folder: Path | None) -> list[Path]:
    if folder is not None:
        return [folder]
    return [p.parent for p in sorted((bundle.folder / ENGINES).glob(f"*/{ENGINES_FILE}"))]


def find_engines(
    bundle: Bundle, flavour: str, version: str, gpu: str, folder: Path | None = None
) -> EngineFolder:
    """Engines of a bundle that run here: of the scale-generic layout if there are both.

    Args:
        gpu: compute capability of this machine's GPU, as `sm90`.
        folder: takes this folder, or fails.

    Raises:
        EngineIncompatibleError: there are none; the message says what was found and why not.
    """
    candidates, reasons = [], []
    for place in _folders(bundle, folder):
        try:
            found = EngineFolder.open(place)
        except EngineIncompatibleError as error:
            reasons.append(str(error))
            continue
        if wrong := _unusable(found.manifest, bundle, flavour, version, gpu):
            reasons.append(f"{place.name}: {'; '.join(wrong)}")
        else:
            candidates.append(found)
    if candidates:
        return min(candidates, key=lambda c: (c.manifest.layout != "profiles", c.folder.name))
    listed = " | ".join(reasons) or "there are none"
    raise EngineIncompatibleError(
        f"{bundle.folder}: no engines for {flavour} {version} on {gpu}: {listed}. "
        f"Build them here with scripts/build_engines.py --bundle {bundle.folder}",
        tuple(reasons),
    )


def _unusable(
    found: EngineManifest, bundle: Bundle, flavour: str, version: str, gpu: str
) -> list[str]:
    reasons, manifest = [], bundle.manifest
    if (found.library, found.library_version) != (flavour, version):
        reasons.append(
            f"built with {found.library} {found.library_version}, here is {flavour} {version}"
        )
    if gpu not in found.gpus:
        reasons.append(f"built for {', '.join(found.gpus)}, this GPU is {gpu}")
    if found.weights_sha256 != manifest.weights.sha256:
        reasons.append("built from other weights than the bundle now holds")
    if changed := [
        name
        for name, entry in found.engines.items()
        if name not in manifest.graphs or manifest.graphs[name].sha256 != entry.graph_sha256
    ]:
        reasons.append(f"built from other graphs than the bundle now holds ({', '.join(changed)})")
    return reasons
