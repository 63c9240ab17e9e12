"""Reads a folder of recordings, and refuses what is damaged or refers to what is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, FileSpec
from runtime.errors import EngineIncompatibleError
from runtime.recording import (
    DATA_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    NULL,
    SOURCES,
    Contents,
    Copy,
    Engines,
    GenerationPlan,
    GraphPlan,
    Launch,
    Operation,
    Piece,
    Place,
    Pointer,
    RecordedPlan,
    Recording,
    RecordingEntry,
    RecordingIndex,
    Run,
    SamplingPlan,
    Tensor,
    Zero,
)
from runtime.records import mapping, record


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFolder:
    """A folder of recordings whose index has been read."""

    folder: Path
    index: RecordingIndex

    @classmethod
    def open(cls, folder: Path) -> RecordingFolder:
        """Reads the index.

        Raises:
            EngineIncompatibleError: it is missing, unreadable or of another version.
        """
        path = folder / INDEX_FILE
        with _refusing(path):
            return cls(folder=folder, index=_parse_index(json.loads(path.read_text("utf-8"))))

    def recording(self, entry: RecordingEntry) -> Recording:
        """A recording of this folder.

        Raises:
            EngineIncompatibleError: it is missing, damaged, or refers to what is not there.
        """
        path = self.folder / entry.file
        with _refusing(path):
            text = path.read_bytes()
            if (found := hashlib.sha256(text).hexdigest()) != entry.sha256:
                raise ValueError(f"sha256 {found[:12]}…, the index says {entry.sha256[:12]}…")
            recording = parse_recording(json.loads(text))
            check_recording(recording, self.index)
            return recording

    def mismatches(self, bundle: Bundle, tables: Mapping[str, str]) -> tuple[str, ...]:
        """What keeps these recordings from being of a bundle and a library, in sentences."""
        index, reasons = self.index, []
        if index.weights_sha256 != bundle.manifest.weights.sha256:
            reasons.append("recorded from other weights than the bundle now holds")
        if index.graphs != {name: spec.sha256 for name, spec in bundle.manifest.graphs.items()}:
            reasons.append("recorded from other graphs than the bundle now holds")
        if changed := [part for part in index.tables if index.tables[part] != tables.get(part)]:
            reasons.append(f"the plugin library has other kernels of {', '.join(changed)} now")
        return tuple(reasons)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into one that says what to do."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineIncompatibleError(
            f"{path}: no recording that this release reads ({error}); "
            "make it again with scripts/build_engines.py --only-recordings --force"
        ) from error


def _parse_index(data: Any) -> RecordingIndex:
    version = mapping(data, "recordings").get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}, this release reads {FORMAT_VERSION}")

    def entry(data: Any) -> RecordingEntry:
        return record(RecordingEntry, data, "recordings", plan=_parse_plan)

    def engines(data: Any) -> Engines | None:
        if data is None:
            return None
        return record(
            Engines,
            data,
            "engines",
            plans=lambda files: tuple(record(FileSpec, file, "plans") for file in files),
        )

    index = record(
        RecordingIndex,
        data,
        "recordings",
        data_file=lambda file: record(FileSpec, file, "data_file"),
        weights=lambda items: tuple(_parse_contents(item) for item in items),
        engines=engines,
        recordings=lambda items: tuple(entry(item) for item in items),
    )
    files = [index.data_file.file, *(entry.file for entry in index.recordings)]
    if index.engines is not None:
        files += [index.engines.folder, *(plan.file for plan in index.engines.plans)]
    if escaping := [file for file in files if Path(file).name != file]:
        raise ValueError(f"files outside the folder: {escaping}")
    for contents in index.weights:
        check_contents(contents)
    return index


def _parse_plan(data: Any) -> RecordedPlan:
    of = mapping(data, "plan").get("of")
    if of == "generation":
        return record(
            GenerationPlan,
            data,
            "plan",
            schedule=lambda entries: None if entries is None else tuple(map(tuple, entries)),
            is_guided=tuple,
        )
    if of == "graph":
        return record(GraphPlan, data, "plan", inputs=_parse_shapes, outputs=_parse_shapes)
    if of == "sampling":
        return record(SamplingPlan, data, "plan", timesteps=tuple)
    raise ValueError(f"a plan of {of!r}")


def _parse_shapes(data: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in mapping(data, "shapes").items()}


def _parse_contents(data: Any) -> Contents:
    return record(
        Contents,
        data,
        "buffer",
        pieces=lambda pieces: tuple(Piece(*piece) for piece in pieces),
        zeros=lambda zeros: tuple((at, nbytes) for at, nbytes in zeros),
    )


def parse_recording(data: Any) -> Recording:
    """A recording from JSON; raises ValueError or TypeError where it is none."""
    return record(
        Recording,
        data,
        "recording",
        plan=_parse_plan,
        constants=_parse_contents,
        inputs=_parse_places,
        outputs=_parse_places,
        kernels=lambda kernels: tuple((part, name) for part, name in kernels),
        operations=lambda operations: tuple(map(_parse_operation, operations)),
    )


def _parse_places(data: Any) -> dict[str, Place]:
    return {name: Place(*place) for name, place in mapping(data, "places").items()}


def _parse_operation(data: Sequence[Any]) -> Operation:
    kind, *rest = data
    if kind == 0:
        kernel, x, y, z, *given = rest
        arguments = tuple(Pointer(*a) if isinstance(a, list) else a for a in given)
        return Launch(kernel, (x, y, z), arguments)
    if kind == 1:
        target, source, nbytes = rest
        return Copy(Pointer(*target), Pointer(*source), nbytes)
    if kind == 2:
        return Zero(Place(*rest))
    if kind == 3:
        plan, profile, scratch, inputs, outputs = rest
        place = None if scratch is None else Place(*scratch)
        return Run(plan, profile, place, _parse_tensors(inputs), _parse_tensors(outputs))
    raise ValueError(f"an operation of kind {kind!r}")


def _parse_tensors(data: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, Place(*place), tuple(shape)) for name, place, shape in data)


def check_contents(contents: Contents) -> None:
    """Raises ValueError where something lies outside the buffer."""
    spans = [(p.at, p.nbytes) for p in contents.pieces] + list(contents.zeros)
    for at, nbytes in spans:
        if min(at, nbytes) < 0 or at + nbytes > contents.nbytes:
            raise ValueError(f"{nbytes} bytes at {at} of a buffer of {contents.nbytes}")
    if unknown := {p.source for p in contents.pieces} - set(SOURCES):
        raise ValueError(f"sources {sorted(unknown)}, there are {SOURCES}")


def check_recording(recording: Recording, index: RecordingIndex) -> None:
    """Raises ValueError where an operation refers to what is not there."""
    weights = [contents.nbytes for contents in index.weights]
    sizes = [recording.scratch_nbytes, recording.constants.nbytes, *weights]
    num_plans = 0 if index.engines is None else len(index.engines.plans)
    check_contents(recording.constants)
    for place in _places(recording):
        if not 0 <= place.buffer < len(sizes):
            raise ValueError(f"buffer {place.buffer}, there are {len(sizes)}")
        if min(place.offset, place.nbytes) < 0 or place.offset + place.nbytes > sizes[place.buffer]:
            raise ValueError(f"{place} is outside its buffer of {sizes[place.buffer]} bytes")
    for operation in recording.operations:
        if isinstance(operation, Launch):
            if not 0 <= operation.kernel < len(recording.kernels):
                raise ValueError(f"kernel {operation.kernel}, there are {len(recording.kernels)}")
            if min(operation.grid) < 1:
                raise ValueError(f"a launch of {operation.grid} programs")
        elif isinstance(operation, Run) and not 0 <= operation.plan < num_plans:
            raise ValueError(f"plan {operation.plan}, there are {num_plans}")


def _places(recording: Recording) -> Iterator[Place]:
    """All that is referred to; a pointer is to one byte at least."""
    yield from (*recording.inputs.values(), *recording.outputs.values())
    for operation in recording.operations:
        if isinstance(operation, Launch):
            pointers = (a for a in operation.arguments if isinstance(a, Pointer) and a != NULL)
            yield from (Place(*pointer, 1) for pointer in pointers)
        elif isinstance(operation, Copy):
            yield Place(*operation.target, operation.nbytes)
            yield Place(*operation.source, operation.nbytes)
        elif isinstance(operation, Zero):
            yield operation.place
        else:
            yield from (tensor.place for tensor in (*operation.inputs, *operation.outputs))
            if operation.scratch is not None:
                yield operation.scratch


def read_piece(piece: Piece, bundle: Bundle, folder: Path) -> bytes:
    """The bytes of a piece."""
    path = bundle.path(bundle.manifest.weights) if piece.source == "weights" else folder / DATA_FILE
    with path.open("rb") as file:
        file.seek(piece.offset)
        return file.read(piece.nbytes)


def file_spec(path: Path) -> FileSpec:
    """A file as an index names it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileSpec(file=path.name, sha256=digest, nbytes=path.stat().st_size)
