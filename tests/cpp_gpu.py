"""The C++ runtime on a GPU that is not there: stand-ins for the driver and the plugin library."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64
from pathlib import Path

from tests.cpp_build import CppBuild
from tests.host_device import HostDevice
from tests.host_library import HostLibrary

LAUNCH = 0


class FakeOperation(ctypes.Structure):
    _fields_ = (
        ("kind", c_int),
        ("kernel", c_char_p),
        ("grid", c_uint * 3),
        ("threads", c_uint),
        ("shared_bytes", c_uint),
        ("overlaps", c_uint),
        ("arguments", POINTER(c_uint64)),
        ("num_arguments", c_size_t),
        ("target", c_uint64),
        ("source", c_uint64),
        ("nbytes", c_uint64),
    )


OnOperation = ctypes.CFUNCTYPE(None, POINTER(FakeOperation))


class FakeGpu:
    """Both stand-ins, for this process; kernels are those of a library on the host.

    Attributes:
        plugins: what a session is given as its plugin library.
    """

    def __init__(self, build: CppBuild, library: HostLibrary) -> None:
        # the runtime asks for libcuda.so.1, and gets what is loaded under this name
        self.cuda = ctypes.CDLL(str(build.folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        self.plugins: Path = build.folder / "libfake_plugins.so"
        plugins = ctypes.CDLL(str(self.plugins))
        for part in library.tables:
            plugins.fake_plugins_set(part.encode(), library.text(part).encode())
        self._library, self.failure = library, None
        self._parts = {n: part for part, table in library.tables.items() for n in table}
        self._callback: Callable[..., None] = OnOperation(self._operate)
        self.cuda.fake_cuda_on_operation(self._callback)

    @property
    def live(self) -> int:
        """Objects of CUDA that are not freed."""
        return int(self.cuda.fake_cuda_live())

    @property
    def violations(self) -> int:
        return int(self.cuda.fake_cuda_violations())

    def _operate(self, operation: ctypes._Pointer[FakeOperation]) -> None:
        op = operation.contents
        if op.kind != LAUNCH or self.failure is not None:
            return
        try:
            name = op.kernel.decode()
            part = self._parts[name]
            kinds = self._library.tables[part][name]["parameters"].values()
            bits = op.arguments[: op.num_arguments]
            values = [_value(kind, b) for kind, b in zip(kinds, bits, strict=True)]
            x, y, z = op.grid
            self._library.launch_all(part, name, (x, y, z), HostDevice.stream, values)
        except BaseException as error:  # it cannot get out of a callback
            self.failure = error

    def close(self) -> None:
        self.cuda.fake_cuda_on_operation(None)


def _value(kind: str, bits: int) -> int | float:
    if kind == "pointer":
        return bits
    return struct.unpack("<f" if kind == "fp32" else "<i", struct.pack("<I", bits))[0]
