"""`engines.json` and the plans beside it, read and checked; which folder of engines runs here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.trt_library import Flavour
from runtime.bundle import Bundle, FileSpec, Kind, TensorSpec
from runtime.engine_plan import Dims, with_totals
from runtime.errors import EngineIncompatibleError
from runtime.stages import Stage, align, lay_out_arena

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
ENGINES, ENGINES_FILE = "engines", "engines.json"
FUNCTION_BODY = "function body"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry(FileSpec):
    """One plan, relative to the engine folder.

    Attributes:
        stage: the part of the graph that it runs, None = all.
        activation_nbytes: scratch memory of every profile; None = known only on the GPU.
    """

    stage: Stage | None
    activation_nbytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """The engine of one graph, or the engines of its stages, and what they were built from.

    Attributes:
        key: SHA-256 over all that the plans depend on.
        attention: "plugin" and its version where it runs the attention layers, "function body"
            where standard layers do, None for a graph without attention.
        profiles: sizes of the symbolic dimensions.
        plans: one, or one per stage, in the order in which they run.
        why_staged: empty for a whole graph.
    """

    graph_sha256: str
    key: str
    attention: str | None
    profiles: tuple[Dims, ...]
    plans: tuple[PlanEntry, ...]
    why_staged: str
    build_seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of all plans."""
        return sum(plan.nbytes for plan in self.plans)

    @property
    def activation_nbytes(self) -> tuple[int, ...] | None:
        """Scratch memory of every profile, and what passes between stages; None = not known."""
        known = [p.activation_nbytes for p in self.plans if p.activation_nbytes is not None]
        if len(known) < len(self.plans):
            return None
        stages = [plan.stage for plan in self.plans if plan.stage is not None]
        return tuple(
            align(max(scratch)) + lay_out_arena(stages, with_totals(profile)).nbytes
            for scratch, profile in zip(zip(*known, strict=True), self.profiles, strict=True)
        )


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
    stages: dict[Kind, int]
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

    def read_plan(self, graph: str, stage: int = 0, *, check: bool = True) -> bytes:
        """The serialized engine of a graph, or of one of its stages.

        Args:
            check: compare its SHA-256 with the manifest (about a second per GB).

        Raises:
            EngineIncompatibleError: it is missing or damaged.
        """
        entry = self.manifest.engines[graph].plans[stage]
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
    engines = {name: _parse_entry(entry) for name, entry in data["engines"].items()}
    files = [plan.file for entry in engines.values() for plan in entry.plans]
    if escaping := [file for file in files if Path(file).name != file]:
        raise ValueError(f"plans outside the folder: {escaping}")
    return EngineManifest(
        **{
            **data,
            "gpus": tuple(data["gpus"]),
            "batches": tuple(data["batches"]),
            "engines": engines,
        }
    )


def _parse_entry(data: dict[str, Any]) -> EngineEntry:
    plans = tuple(_parse_plan(plan) for plan in data["plans"])
    if not plans:
        raise ValueError("an engine without plans")
    profiles = tuple(dict(p) for p in data["profiles"])
    return EngineEntry(**{**data, "profiles": profiles, "plans": plans})


def _parse_plan(data: dict[str, Any]) -> PlanEntry:
    stage, activations = data["stage"], data["activation_nbytes"]
    if stage is not None:
        stage = Stage(**{side: tuple(map(_parse_tensor, specs)) for side, specs in stage.items()})
    activations = None if activations is None else tuple(activations)
    return PlanEntry(**{**data, "stage": stage, "activation_nbytes": activations})


def _parse_tensor(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**data, "shape": tuple(data["shape"])})


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


def find_engines_for(bundle: Bundle, gpu: str) -> EngineFolder:
    """Engines of a bundle for a GPU, of the scale-generic layout: the first, of any TensorRT.

    Raises:
        EngineIncompatibleError: there are none; the message says what was found and why not.
    """
    reasons = []
    for place in _folders(bundle, None):
        try:
            found = EngineFolder.open(place)
        except EngineIncompatibleError as error:
            reasons.append(str(error))
            continue
        wrong = _of_others(found.manifest, bundle, gpu)
        if found.manifest.layout != "profiles":
            wrong.append(f"of the layout {found.manifest.layout}")
        if not wrong:
            return found
        reasons.append(f"{place.name}: {'; '.join(wrong)}")
    listed = " | ".join(reasons) or "there are none"
    raise EngineIncompatibleError(
        f"{bundle.folder}: no engines for {gpu} to record runs of: {listed}. "
        f"Build them with scripts/build_engines.py --bundle {bundle.folder}",
        tuple(reasons),
    )


def _unusable(
    found: EngineManifest, bundle: Bundle, flavour: str, version: str, gpu: str
) -> list[str]:
    reasons = []
    if (found.library, found.library_version) != (flavour, version):
        reasons.append(
            f"built with {found.library} {found.library_version}, here is {flavour} {version}"
        )
    return reasons + _of_others(found, bundle, gpu)


def _of_others(found: EngineManifest, bundle: Bundle, gpu: str) -> list[str]:
    """Why engines are not of a bundle, or not for a GPU."""
    reasons, manifest = [], bundle.manifest
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
