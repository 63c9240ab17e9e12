"""Memory and one stream of a CUDA device, through `cuda.bindings`."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np

from runtime.errors import (
    BackendError,
    BackendUnavailableError,
    DeviceMemoryError,
    NoDeviceError,
)

logger = logging.getLogger(__name__)

HOW_TO_INSTALL = "pip install cuda-python (or cuda-bindings), of the CUDA release of your driver"


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

    def close(self) -> None: ...


def import_cuda() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailableError(
            f"the package cuda.bindings cannot be imported ({error}): {HOW_TO_INSTALL}"
        ) from error
    return runtime


class CudaDevice:
    """One device, and a stream on which all work is in order."""

    def __init__(self, index: int = 0) -> None:
        self._cuda, self.index = import_cuda(), index
        self._call("cudaSetDevice", index, why=f"device {index}")
        (stream,) = self._call(
            "cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking, why="stream"
        )
        self._stream = int(stream)

    @property
    def stream(self) -> int:
        return self._stream

    @property
    def gpu(self) -> str:
        """Compute capability, as `sm90`."""
        attributes = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", attribute, self.index, why="compute capability")[0]
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"sm{major}{minor}"

    def memory(self) -> tuple[int, int]:
        """Free and total memory in bytes."""
        free, total = self._call("cudaMemGetInfo", why="memory")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises:
            DeviceMemoryError: there is not enough.
        """
        (address,) = self._call("cudaMalloc", nbytes, why=f"{nbytes / 1e6:.1f} MB")
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address, why="free")

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the device; it may be changed afterwards."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: np.ndarray, address: int) -> None:
        """Fills a contiguous array from the device, after all work on the stream."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")
        self._call("cudaStreamSynchronize", self._stream, why="download")

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies within the device."""
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToDevice")

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cudaMemsetAsync", address, 0, nbytes, self._stream, why="zero")

    def close(self) -> None:
        """Ends the stream, after all work on it."""
        self._call("cudaStreamSynchronize", self._stream, why="close")
        self._call("cudaStreamDestroy", self._stream, why="close")

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        self._call(
            "cudaMemcpyAsync",
            target,
            source,
            nbytes,
            direction,
            self._stream,
            why=f"{nbytes} bytes",
        )

    def _call(self, function: str, *arguments: Any, why: str) -> tuple[Any, ...]:
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
