"""Recordings: generations as lists of operations on a GPU, for runtimes that only replay them.

    engines/<gpu>_recordings/
      recordings.json   what they were made from and for, and what device memory holds before
      data.bin          what that memory is filled with, where the bundle's weights file lacks it
      generation_*.json one plan each: the operations in order

The format is described in docs/bundle.md. A folder is written beside its place and then renamed, so
that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from runtime.bundle import Bundle, FileSpec
from runtime.errors import EngineIncompatibleError
from runtime.records import mapping, record
from runtime.schedule import Schedule

FORMAT_VERSION = 1
INDEX_FILE, DATA_FILE = "recordings.json", "data.bin"

SCRATCH, CONSTANTS, FIRST_WEIGHTS = 0, 1, 2
"""Buffers: written by the operations; of a generation, read by them; weights, from here on."""

Source = Literal["weights", "data"]
SOURCES: tuple[Source, ...] = get_args(Source)
INPUTS = ("labels", "images", "seed", "settings")


class Place(NamedTuple):
    """Bytes of a buffer."""

    buffer: int
    offset: int
    nbytes: int


class Pointer(NamedTuple):
    """An address; NULL is no address."""

    buffer: int
    offset: int


NULL = Pointer(-1, 0)
Argument = Pointer | int | float


class Launch(NamedTuple):
    """A kernel, by its index in `Recording.kernels`; arguments in the order of its parameters."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]


class Copy(NamedTuple):
    """Bytes from one place to another; they do not overlap."""

    target: Pointer
    source: Pointer
    nbytes: int


class Zero(NamedTuple):
    """Zeros at a place."""

    place: Place


Operation = Launch | Copy | Zero


class Piece(NamedTuple):
    """What fills a part of a buffer: bytes of the bundle's weights file, or of the data file."""

    at: int
    nbytes: int
    source: Source
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A buffer and what it holds before the first run; what neither fills is unspecified.

    Attributes:
        zeros: offsets and sizes.
    """

    nbytes: int
    pieces: tuple[Piece, ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPlan:
    """What a recording is of, as `runtime.backends.generation.Plan`."""

    batch: int
    schedule: Schedule | None
    is_guided: tuple[bool, ...]
    is_mask_guided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One generation.

    Attributes:
        scratch_nbytes: size of the buffer SCRATCH.
        constants: the buffer CONSTANTS.
        inputs: what is written before every run, by the names INPUTS: labels (2B) int32, the second
            half and rows of padding being num_classes; images (B) uint64; seed (1) uint64;
            settings (3) float64, which are cfg, top_k, top_p.
        pixels: (B, H, W, 3) uint8, after a run.
        image: (B, 3, H, W) float32.
        tokens: of every scale, (B, pn * pn) int32.
        kernels: part of the plugin library, and name.
    """

    plan: RecordedPlan
    scratch_nbytes: int
    constants: Contents
    inputs: dict[str, Place]
    pixels: Place
    image: Place
    tokens: tuple[Place, ...]
    kernels: tuple[tuple[str, str], ...]
    operations: tuple[Operation, ...]

    def to_json(self) -> str:
        """A line for each field, and for each operation."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        operations = fields.pop("operations")
        fields |= {name: dataclasses.asdict(fields[name]) for name in ("plan", "constants")}
        head = [f"{json.dumps(n)}: {_dump(value)}" for n, value in fields.items()]
        lines = ",\n".join(_dump(_flat(operation)) for operation in operations)
        return "{" + ",\n".join([*head, f'"operations": [\n{lines}]']) + "}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingEntry(FileSpec):
    """A recording in the index."""

    plan: RecordedPlan
    scratch_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingIndex:
    """What `recordings.json` says.

    Attributes:
        runtime_version: of the release that recorded.
        gpu: compute capability, as `sm90`.
        tables: SHA-256 of the kernel tables of the plugin library, by part.
        weights_sha256: of the bundle's weights file.
        graphs: SHA-256 of the bundle's graphs, by name.
        weights: buffers that all recordings read, from FIRST_WEIGHTS on.
    """

    format_version: int
    runtime_version: str
    gpu: str
    tables: dict[str, str]
    weights_sha256: str
    graphs: dict[str, str]
    data_file: FileSpec
    weights: tuple[Contents, ...]
    generations: tuple[RecordingEntry, ...]

    def to_json(self) -> str:
        """A line for each field."""
        data = dataclasses.asdict(self)
        return "{" + ",\n".join(f"{json.dumps(n)}: {_dump(v)}" for n, v in data.items()) + "}\n"


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _flat(operation: Operation) -> list[Any]:
    """As it is written: a number for its kind, and what it consists of."""
    if isinstance(operation, Launch):
        return [0, operation.kernel, *operation.grid, *operation.arguments]
    if isinstance(operation, Copy):
        return [1, operation.target, operation.source, operation.nbytes]
    return [2, *operation.place]


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

    def generation(self, entry: RecordingEntry) -> Recording:
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
            check_recording(recording, [c.nbytes for c in self.index.weights])
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
        return record(RecordingEntry, data, "generations", plan=_parse_plan)

    index = record(
        RecordingIndex,
        data,
        "recordings",
        data_file=lambda file: record(FileSpec, file, "data_file"),
        weights=lambda items: tuple(_parse_contents(item) for item in items),
        generations=lambda items: tuple(entry(item) for item in items),
    )
    files = [index.data_file.file, *(g.file for g in index.generations)]
    if escaping := [file for file in files if Path(file).name != file]:
        raise ValueError(f"files outside the folder: {escaping}")
    for contents in index.weights:
        check_contents(contents)
    return index


def _parse_plan(data: Any) -> RecordedPlan:
    return record(
        RecordedPlan,
        data,
        "plan",
        schedule=lambda entries: None if entries is None else tuple(map(tuple, entries)),
        is_guided=tuple,
    )


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
        inputs=lambda places: {n: Place(*p) for n, p in mapping(places, "inputs").items()},
        pixels=lambda place: Place(*place),
        image=lambda place: Place(*place),
        tokens=lambda places: tuple(Place(*place) for place in places),
        kernels=lambda kernels: tuple((part, name) for part, name in kernels),
        operations=lambda operations: tuple(map(_parse_operation, operations)),
    )


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
    raise ValueError(f"an operation of kind {kind!r}")


def check_contents(contents: Contents) -> None:
    """Raises ValueError where something lies outside the buffer."""
    spans = [(p.at, p.nbytes) for p in contents.pieces] + list(contents.zeros)
    for at, nbytes in spans:
        if min(at, nbytes) < 0 or at + nbytes > contents.nbytes:
            raise ValueError(f"{nbytes} bytes at {at} of a buffer of {contents.nbytes}")
    if unknown := {p.source for p in contents.pieces} - set(SOURCES):
        raise ValueError(f"sources {sorted(unknown)}, there are {SOURCES}")


def check_recording(recording: Recording, weights: Sequence[int]) -> None:
    """Raises ValueError where an operation refers to what is not there.

    Args:
        weights: sizes of the buffers of weights.
    """
    sizes = [recording.scratch_nbytes, recording.constants.nbytes, *weights]
    check_contents(recording.constants)
    if set(recording.inputs) != set(INPUTS):
        raise ValueError(f"inputs are {sorted(recording.inputs)}, expected {sorted(INPUTS)}")
    for place in _places(recording):
        if not 0 <= place.buffer < len(sizes):
            raise ValueError(f"buffer {place.buffer}, there are {len(sizes)}")
        if min(place.offset, place.nbytes) < 0 or place.offset + place.nbytes > sizes[place.buffer]:
            raise ValueError(f"{place} is outside its buffer of {sizes[place.buffer]} bytes")
    for operation in recording.operations:
        if not isinstance(operation, Launch):
            continue
        if not 0 <= operation.kernel < len(recording.kernels):
            raise ValueError(f"kernel {operation.kernel}, there are {len(recording.kernels)}")
        if min(operation.grid) < 1:
            raise ValueError(f"a launch of {operation.grid} programs")


def _places(recording: Recording) -> Iterator[Place]:
    """All that is referred to; a pointer is to one byte at least."""
    yield from (*recording.inputs.values(), recording.pixels, recording.image, *recording.tokens)
    for operation in recording.operations:
        if isinstance(operation, Launch):
            pointers = (a for a in operation.arguments if isinstance(a, Pointer) and a != NULL)
            yield from (Place(*pointer, 1) for pointer in pointers)
        elif isinstance(operation, Copy):
            yield Place(*operation.target, operation.nbytes)
            yield Place(*operation.source, operation.nbytes)
        else:
            yield operation.place


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
