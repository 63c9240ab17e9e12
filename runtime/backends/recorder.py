"""Writes down what generations put onto a GPU, without one: addresses are made up, nothing runs."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.cuda import Device
from runtime.backends.kernel_library import Part
from runtime.bundle import TensorSpec
from runtime.engine_plan import Dims, nbytes, resolve, with_totals
from runtime.launches import KernelTable
from runtime.recording import (
    NULL,
    Argument,
    Copy,
    Launch,
    Operation,
    Place,
    Pointer,
    Run,
    Tensor,
    Zero,
)
from runtime.stages import align

FIRST_ADDRESS = 1 << 40
UNLIMITED = 1 << 50  # bytes of memory


@dataclass(slots=True)
class Block:
    """Memory that was allocated, and what it was filled with outside of captures.

    Attributes:
        arrays: by offset.
        zeros: offsets and sizes.
    """

    address: int
    nbytes: int
    arrays: dict[int, np.ndarray] = field(default_factory=dict)
    zeros: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_filled(self) -> bool:
        return bool(self.arrays or self.zeros)


@dataclass(frozen=True, slots=True)
class NotedLaunch:
    """A launch with its arguments by value; pointers are addresses, by their parameter's kind."""

    part: Part
    kernel: str
    grid: tuple[int, int, int]
    kinds: tuple[str, ...]
    arguments: tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class NotedCopy:
    target: int
    source: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class NotedZero:
    address: int
    nbytes: int


NotedTensor = tuple[str, int, int, tuple[int, ...]]
"""Name, address, bytes, shape."""


@dataclass(frozen=True, slots=True)
class NotedRun:
    """A run of an engine; scratch memory is (address, bytes), None = its own."""

    plan: int
    profile: int
    scratch: tuple[int, int] | None
    inputs: tuple[NotedTensor, ...]
    outputs: tuple[NotedTensor, ...]


Noted = NotedLaunch | NotedCopy | NotedZero | NotedRun


class NotedGraph:
    """What a capture put onto the stream; launching it does nothing."""

    def __init__(self, operations: Sequence[Noted]) -> None:
        self.operations = tuple(operations)

    def launch(self) -> None:
        pass

    def close(self) -> None:
        pass


class RecordingDevice(Device):
    """Hands out addresses that nothing lies at, and notes what captured work does.

    Attributes:
        blocks: all memory, in the order of addresses.
        graphs: everything captured.
    """

    stream = 0

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.graphs: list[NotedGraph] = []
        self._noted: list[Noted] | None = None

    def memory(self) -> tuple[int, int]:
        return UNLIMITED, UNLIMITED

    def allocate(self, nbytes: int) -> int:
        last = self.blocks[-1] if self.blocks else Block(FIRST_ADDRESS, 0)
        # no address is of two blocks, not even one behind the last byte
        address = last.address + align(last.nbytes + 1)
        self.blocks.append(Block(address, nbytes))
        return address

    def free(self, address: int) -> None:
        pass  # its contents are still asked for

    def upload(self, address: int, array: np.ndarray) -> None:
        block, offset = self.find(address)
        block.arrays[offset] = array

    def download(self, array: np.ndarray, address: int) -> None:
        array[...] = 0

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.note(NotedCopy(target, source, nbytes))

    def zero(self, address: int, nbytes: int) -> None:
        if self._noted is None:
            block, offset = self.find(address)
            block.zeros.append((offset, nbytes))
        self.note(NotedZero(address, nbytes))

    def capture(self, work: Callable[[], None]) -> NotedGraph:
        self._noted = []
        try:
            work()
            self.graphs.append(NotedGraph(self._noted))
        finally:
            self._noted = None
        return self.graphs[-1]

    def record(self) -> Any:
        return None

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        return 0.0

    def close(self) -> None:
        pass

    def note(self, operation: Noted) -> None:
        """Keeps an operation, if one of a capture."""
        if self._noted is not None:
            self._noted.append(operation)

    def find(self, address: int) -> tuple[Block, int]:
        """The block that holds an address, and its offset there."""
        index = bisect_right(self.blocks, address, key=lambda block: block.address) - 1
        block = self.blocks[max(index, 0)]
        offset = address - block.address
        assert 0 <= offset < block.nbytes, f"address {address:#x} is of no block"
        return block, offset


class RecordingKernels:
    """Kernels of a part of the library, whose launches are noted."""

    def __init__(self, part: Part, table: KernelTable, device: RecordingDevice) -> None:
        self._part, self.table, self._device = part, table, device

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        parameters = self.table[name]["parameters"]
        if unknown := set(arguments) - set(parameters):
            raise ValueError(f"kernel {name} has no parameters {sorted(unknown)}")
        x, y, z = (*grid, 1, 1)[:3]
        values = tuple(arguments.get(parameter, 0) for parameter in parameters)
        kinds = tuple(parameters.values())
        self._device.note(NotedLaunch(self._part, name, (x, y, z), kinds, values))


class RecordingEngine:
    """An engine of TensorRT that is not loaded, whose runs are noted.

    Args:
        plan: its index among the plans of the recordings.
        inputs, outputs: of the graph or the stage that it was built from.
        activation_nbytes: of every profile; None = not known here.
    """

    has_many_launches = False

    def __init__(
        self,
        plan: int,
        plan_nbytes: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Dims],
        activation_nbytes: Sequence[int] | None,
        device: RecordingDevice,
    ) -> None:
        self._plan, self._inputs, self._outputs, self._device = plan, inputs, outputs, device
        self.plan_nbytes, self.profiles = plan_nbytes, tuple(profiles)
        self._is_known = activation_nbytes is not None
        self.activation_nbytes = tuple(activation_nbytes or [0] * len(profiles))

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        sizes = with_totals(self.profiles[profile])

        def tensors(specs: Sequence[TensorSpec]) -> tuple[NotedTensor, ...]:
            return tuple(
                (s.name, addresses[s.name], nbytes(s, sizes), resolve(s, sizes)) for s in specs
            )

        scratch = (activations, self.activation_nbytes[profile]) if self._is_known else None
        self._device.note(
            NotedRun(self._plan, profile, scratch, tensors(self._inputs), tensors(self._outputs))
        )

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        raise AssertionError("nothing runs")

    def close(self) -> None:
        pass


class Layout:
    """Where blocks lie in the buffers of recordings: operations by (buffer, offset)."""

    def __init__(self, device: RecordingDevice, places: Mapping[int, Pointer]) -> None:
        """
        Args:
            places: by address of a block, its place.
        """
        self._device, self._places = device, places

    def pointer(self, address: int) -> Pointer:
        block, offset = self._device.find(address)
        buffer, start = self._places[block.address]
        return Pointer(buffer, start + offset)

    def place(self, address: int, nbytes: int) -> Place:
        return Place(*self.pointer(address), nbytes)

    def operation(self, noted: Noted, kernels: dict[tuple[str, str], int]) -> Operation:
        """An operation; a kernel that is new is added to `kernels` with its index."""
        if isinstance(noted, NotedCopy):
            return Copy(self.pointer(noted.target), self.pointer(noted.source), noted.nbytes)
        if isinstance(noted, NotedZero):
            return Zero(self.place(noted.address, noted.nbytes))
        if isinstance(noted, NotedRun):
            inputs, outputs = (
                tuple(Tensor(name, self.place(at, size), shape) for name, at, size, shape in given)
                for given in (noted.inputs, noted.outputs)
            )
            scratch = None if noted.scratch is None else self.place(*noted.scratch)
            return Run(noted.plan, noted.profile, scratch, inputs, outputs)
        kernel = kernels.setdefault((noted.part, noted.kernel), len(kernels))
        arguments = tuple(map(self._argument, noted.kinds, noted.arguments))
        return Launch(kernel, noted.grid, arguments)

    def _argument(self, kind: str, value: int | float) -> Argument:
        if kind in ("pointer", "tensor_map"):
            assert isinstance(value, int)
            return self.pointer(value) if value else NULL
        return float(value) if kind == "fp32" else int(value)


def offset_in_file(array: np.ndarray, path: Path) -> int | None:
    """Where the bytes of a contiguous array are in a file; None where they are not a view of it."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            if base.filename is None or Path(base.filename) != path.resolve():
                return None
            return int(base.offset) + array.ctypes.data - base.ctypes.data
        base = base.base
    return None
