"""Memory and one stream of a CUDA device, through `cuda.bindings`."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np

from runtime.errors import (
    BackendError,
    BackendUnavailableError,
    DeviceMemoryError,
    NoDeviceError,
)

logger = logging.getLogger(__name__)

PIECE_NBYTES = 1 << 20  # of a large download
HOW_TO_INSTALL = "pip install cuda-python (or cuda-bindings), of the CUDA release of your driver"


class Graph(Protocol):
    """Captured work."""

    def launch(self) -> None:
        """Puts the work onto the device's stream once more."""

    def close(self) -> None: ...


class Device(Protocol):
    """What the runner asks of a device; addresses are integers."""

    @property
    def stream(self) -> int: ...

    def memory(self) -> tuple[int, int]: ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, array: np.ndarray) -> None: ...

    def download(self, array: np.ndarray, address: int) -> None: ...

    def copy(self, target: int, source: int, nbytes: int) -> None: ...

    def zero(self, address: int, nbytes: int) -> None: ...

    def capture(self, work: Callable[[], None]) -> Graph: ...

    def record(self) -> Any: ...

    def elapsed_ms(self, start: Any, stop: Any) -> float: ...

    def close(self) -> None: ...


def import_cuda(name: Literal["runtime", "driver"] = "runtime") -> Any:
    """A module of `cuda.bindings`.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        return import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the package cuda.bindings cannot be imported ({error}): {HOW_TO_INSTALL}"
        ) from error


class Event:
    """A point in a stream's work, which can be timed."""

    __slots__ = ("_cuda", "handle")

    def __init__(self, cuda: Any, handle: Any) -> None:
        self._cuda, self.handle = cuda, handle

    def __del__(self) -> None:
        self._cuda.cudaEventDestroy(self.handle)


class CudaDevice:
    """One device, and a stream on which all work is in order."""

    def __init__(self, index: int = 0) -> None:
        self._cuda, self.index = import_cuda(), index
        self.call("cudaSetDevice", index, why=f"device {index}")
        (stream,) = self.call(
            "cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking, why="stream"
        )
        self._stream = int(stream)
        self._pinned = 0  # address of two pieces of page-locked memory, once they are needed

    @property
    def stream(self) -> int:
        return self._stream

    @property
    def gpu(self) -> str:
        """Compute capability, as `sm90`."""
        attributes = self._cuda.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", attribute, self.index, why="compute capability")[0]
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"sm{major}{minor}"

    @property
    def multiprocessors(self) -> int:
        """How many it has."""
        attribute = self._cuda.cudaDeviceAttr.cudaDevAttrMultiProcessorCount
        (count,) = self.call("cudaDeviceGetAttribute", attribute, self.index, why="multiprocessors")
        return int(count)

    def memory(self) -> tuple[int, int]:
        """Free and total memory in bytes."""
        free, total = self.call("cudaMemGetInfo", why="memory")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises:
            DeviceMemoryError: there is not enough.
        """
        (address,) = self.call("cudaMalloc", nbytes, why=f"{nbytes / 1e6:.1f} MB")
        return int(address)

    def free(self, address: int) -> None:
        self.call("cudaFree", address, why="free")

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the device; it may be changed afterwards."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: np.ndarray, address: int) -> None:
        """Fills a contiguous array from the device, after all work on the stream."""
        if array.nbytes > PIECE_NBYTES:
            self._download_in_pieces(array, address)
            return
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self.call("cudaStreamSynchronize", self._stream, why="download")

    def _download_in_pieces(self, array: np.ndarray, address: int) -> None:
        """By way of page-locked memory, which is faster than what the driver does without: one
        piece arrives there while the one before goes on to the array."""
        if not self._pinned:
            (pinned,) = self.call("cudaHostAlloc", 2 * PIECE_NBYTES, 0, why="page-locked memory")
            self._pinned = int(pinned)
        pieces = [
            (at, min(PIECE_NBYTES, array.nbytes - at))
            for at in range(0, array.nbytes, PIECE_NBYTES)
        ]
        places = [self._pinned + i % 2 * PIECE_NBYTES for i in range(len(pieces))]

        def fetch(i: int) -> Event:
            at, nbytes = pieces[i]
            self._copy(places[i], address + at, nbytes, "cudaMemcpyDeviceToHost")
            return self.record()

        arrived = [fetch(0)]
        for i, (at, nbytes) in enumerate(pieces):
            if i + 1 < len(pieces):
                arrived.append(fetch(i + 1))
            self.call("cudaEventSynchronize", arrived[i].handle, why="download")
            ctypes.memmove(array.ctypes.data + at, places[i], nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies within the device."""
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToDevice")

    def zero(self, address: int, nbytes: int) -> None:
        self.call("cudaMemsetAsync", address, 0, nbytes, self._stream, why="zero")

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts onto the stream, as a CUDA graph; nothing of it runs yet.

        The work may not allocate, nor wait for the device.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self._stream, mode, why="capture")
        try:
            work()
        except BaseException:
            # ends the capture; what was captured is of no use
            self._cuda.cudaStreamEndCapture(self._stream)
            raise
        (graph,) = self.call("cudaStreamEndCapture", self._stream, why="capture")
        (executable,) = self.call("cudaGraphInstantiate", graph, 0, why="graph")
        self.call("cudaGraphDestroy", graph, why="graph")
        return CudaGraph(self, executable)

    def record(self) -> Event:
        """An event on the stream, after all work so far."""
        (handle,) = self.call("cudaEventCreate", why="event")
        self.call("cudaEventRecord", handle, self._stream, why="event")
        return Event(self._cuda, handle)

    def elapsed_ms(self, start: Event, stop: Event) -> float:
        """Milliseconds between two events, after waiting for the second."""
        self.call("cudaEventSynchronize", stop.handle, why="event")
        return float(self.call("cudaEventElapsedTime", start.handle, stop.handle, why="event")[0])

    def close(self) -> None:
        """Ends the stream, after all work on it."""
        self.call("cudaStreamSynchronize", self._stream, why="close")
        if self._pinned:
            self.call("cudaFreeHost", self._pinned, why="close")
        self.call("cudaStreamDestroy", self._stream, why="close")

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        self.call(
            "cudaMemcpyAsync",
            target,
            source,
            nbytes,
            direction,
            self._stream,
            why=f"{nbytes} bytes",
        )

    def call(self, function: str, *arguments: Any, why: str) -> tuple[Any, ...]:
        """Results of a function of the CUDA runtime.

        Raises:
            BackendError: it fails.
        """
        status, *results = getattr(self._cuda, function)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(status)
            message = f"{function} ({why}): {status.name}: {text.decode()}"
            if status in (
                self._cuda.cudaError_t.cudaErrorInsufficientDriver,
                self._cuda.cudaError_t.cudaErrorNoDevice,
            ):
                raise NoDeviceError(
                    f"{message}; the backend trt needs an NVIDIA GPU with a driver for the "
                    "installed cuda-python"
                )
            if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
                raise DeviceMemoryError(message)
            raise BackendError(message)
        return tuple(results)


class CudaGraph:
    """An executable CUDA graph."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        self._device.call("cudaGraphLaunch", self._executable, self._device.stream, why="launch")

    def close(self) -> None:
        self._device.call("cudaGraphExecDestroy", self._executable, why="graph")
