"""Values that stay on a device, and the pool of buffers that they lie in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.backends.cuda import Device, Graph
from runtime.bundle import STORED_AS


class Memory:
    """Device memory that a value lies in."""

    __slots__ = ("address", "nbytes")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address, self.nbytes = address, nbytes


class Buffer(Memory):
    """Memory of a pool, which goes back there when nothing refers to it any more."""

    __slots__ = ("_pool",)

    def __init__(self, pool: BufferPool, address: int, nbytes: int) -> None:
        super().__init__(address, nbytes)
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give_back(self.address, self.nbytes)


class Part(Memory):
    """A part of other memory, which does not go back to its pool as long as this is there."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Memory, offset: int, nbytes: int) -> None:
        super().__init__(whole.address + offset, nbytes)
        self._whole = whole


class BufferPool:
    """Buffers that are reused by size.

    All work is on one stream: a buffer given back is written again only after what still reads it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._all: list[int] = []
        self.nbytes = 0  # of all its memory, in use or not

    def take(self, nbytes: int) -> Buffer:
        """A buffer of this size; what it holds is unspecified."""
        free = self._free[nbytes]
        if not free:
            address = self._device.allocate(nbytes)
            self._all.append(address)
            self.nbytes += nbytes
            free.append(address)
        return Buffer(self, free.pop(), nbytes)

    def give_back(self, address: int, nbytes: int) -> None:
        self._free[nbytes].append(address)

    def close(self) -> None:
        """Frees all memory, also that of buffers still referred to."""
        for address in self._all:
            self._device.free(address)
        self._all.clear()
        self._free.clear()
        self.nbytes = 0


def capture(device: Device, pool: BufferPool, work: Callable[[], None]) -> Graph:
    """A graph of some work, which is done before until it takes no new buffers from its pool.

    A capture can make none, and what is kept at first use may have been free in between. Every
    replay writes to buffers that others may hold since: what outlasts a run needs another pool.
    """
    taken = -1
    while taken != pool.nbytes:
        taken = pool.nbytes
        work()
    return device.capture(work)


@dataclass(frozen=True, slots=True)
class DeviceValue:
    """A tensor on the device; the buffer may be longer, by rows of padding.

    `dtype` is named as in the manifest or by NumPy; bfloat16 appears on the host as its bits, in
    uint16.
    """

    dtype: str
    shape: tuple[int, ...]
    buffer: Memory = field(repr=False)

    @classmethod
    def empty(cls, dtype: str, shape: Sequence[int], pool: BufferPool) -> DeviceValue:
        """A tensor in a buffer of its own; what it holds is unspecified."""
        return cls(dtype, tuple(shape), pool.take(_nbytes(dtype, shape)))

    @property
    def nbytes(self) -> int:
        return _nbytes(self.dtype, self.shape)

    def reshaped(self, *shape: int) -> DeviceValue:
        """The same memory as another shape of as many items, or of fewer: the first ones."""
        return replace(self, shape=shape)

    def __getitem__(self, index: int) -> DeviceValue:
        """The value at an index of the first axis, in the same memory."""
        shape = self.shape[1:]
        nbytes = _nbytes(self.dtype, shape)
        return DeviceValue(self.dtype, shape, Part(self.buffer, index * nbytes, nbytes))

    def numpy(self, device: Device) -> np.ndarray:
        """A copy on the host."""
        array = np.empty(self.shape, _stored_as(self.dtype))
        device.download(array, self.buffer.address)
        return array


def _stored_as(dtype: str) -> np.dtype:
    return np.dtype(STORED_AS.get(dtype, dtype))


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape, start=_stored_as(dtype).itemsize)
