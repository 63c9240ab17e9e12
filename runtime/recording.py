"""Recordings: work on a GPU as lists of operations, for runtimes that only replay them.

    engines/<gpu>_recordings/
      recordings.json   what they were made from and for, and what device memory holds before
      data.bin          what that memory is filled with, where the bundle's weights file lacks it
      NNN_*.json        one plan each: the operations in order

The format is described in docs/bundle.md. A folder is written beside its place and then renamed, so
that it is whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from runtime.bundle import FileSpec
from runtime.schedule import Schedule

FORMAT_VERSION = 2
INDEX_FILE, DATA_FILE = "recordings.json", "data.bin"

SCRATCH, CONSTANTS, FIRST_WEIGHTS = 0, 1, 2
"""Buffers: written by the operations; of a recording, read by them; weights, from here on."""

Source = Literal["weights", "data"]
SOURCES: tuple[Source, ...] = get_args(Source)


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


class Tensor(NamedTuple):
    """A tensor of an engine, by its name there."""

    name: str
    place: Place
    shape: tuple[int, ...]


class Run(NamedTuple):
    """A run of a TensorRT engine.

    Attributes:
        plan: index in `Engines.plans`.
        profile: index of its optimization profile.
        scratch: what the engine may write; None = memory of its own, since its size is not known.
    """

    plan: int
    profile: int
    scratch: Place | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


Operation = Launch | Copy | Zero | Run


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
class GenerationPlan:
    """A whole generation of HMAR, as `runtime.backends.generation.Plan`.

    Inputs: labels (2B) int32, the second half and rows of padding being num_classes; images (B)
    uint64; seed (1) uint64; settings (3) float64, which are cfg, top_k, top_p.
    Outputs: pixels (B, H, W, 3) uint8; image (B, 3, H, W) float32; s0_tokens, s1_tokens, … of
    every scale, (B, pn * pn) int32.
    """

    of: Literal["generation"] = "generation"
    batch: int
    schedule: Schedule | None
    is_guided: tuple[bool, ...]
    is_mask_guided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """A run of a graph of the bundle; inputs and outputs are the graph's.

    Attributes:
        batch: images that this many rows are for.
        inputs, outputs: shapes.
    """

    of: Literal["graph"] = "graph"
    batch: int
    graph: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """The sampling of a Hi-MAR step, as `runtime.backends.denoise_loop.LoopPlan`.

    Inputs are those of `LoopInputs`; held_tokens and held are read where `has_held`.
    Output: tokens (B, n, C) float32.

    Attributes:
        graph: of the denoiser.
        length: n, tokens of an image.
        timesteps: ascending.
    """

    of: Literal["sampling"] = "sampling"
    batch: int
    graph: str
    length: int
    timesteps: tuple[int, ...]
    has_held: bool


RecordedPlan = GenerationPlan | GraphPlan | SamplingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The work of a plan.

    Attributes:
        scratch_nbytes: size of the buffer SCRATCH.
        constants: the buffer CONSTANTS.
        inputs: what is written before every run, by name.
        outputs: what is there after a run.
        kernels: part of the plugin library, and name.
    """

    plan: RecordedPlan
    scratch_nbytes: int
    constants: Contents
    inputs: dict[str, Place]
    outputs: dict[str, Place]
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
class Engines:
    """The TensorRT engines that recordings run.

    Attributes:
        folder: beside the folder of the recordings.
        library, library_version: what can load them: "tensorrt" or "tensorrt_rtx".
        needs_plugin: whether some hold the attention plugin.
    """

    folder: str
    library: str
    library_version: str
    needs_plugin: bool
    plans: tuple[FileSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingIndex:
    """What `recordings.json` says.

    Attributes:
        runtime_version: of the release that recorded.
        gpu: compute capability, as `sm90`.
        tables: SHA-256 of the kernel tables of the plugin library, by part that has kernels for it.
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
    engines: Engines | None
    recordings: tuple[RecordingEntry, ...]

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
    if isinstance(operation, Zero):
        return [2, *operation.place]
    return [3, *operation]
