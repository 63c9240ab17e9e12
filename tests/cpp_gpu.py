"""The C++ runtime on a GPU that is not there: stand-ins for the driver and the plugin library."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint, c_uint64
from pathlib import Path

from tests.cpp_build import CppBuild
from tests.host_device import HostDevice
from tests.host_engines import HostEngines
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


class FakeTensor(ctypes.Structure):
    _fields_ = (
        ("name", c_char_p),
        ("address", c_uint64),
        ("shape", POINTER(c_int64)),
        ("rank", c_size_t),
    )


class FakeRun(ctypes.Structure):
    _fields_ = (
        ("plan", POINTER(ctypes.c_char)),
        ("plan_size", c_size_t),
        ("profile", c_int32),
        ("scratch", c_uint64),
        ("tensors", POINTER(FakeTensor)),
        ("num_tensors", c_size_t),
    )


OnRun = ctypes.CFUNCTYPE(None, POINTER(FakeRun))
OnOperation = ctypes.CFUNCTYPE(None, POINTER(FakeOperation))


class FakeGpu:
    """The stand-ins, for this process; kernels are those of a library on the host.

    Attributes:
        plugins: what a session is given as its plugin library.
        failure: of a kernel or engine, which the runtime does not see.
        parts: of the library that have kernels.
    """

    def __init__(self, build: CppBuild, library: HostLibrary) -> None:
        # the runtime asks for libcuda.so.1, and gets what is loaded under this name
        self.cuda = ctypes.CDLL(str(build.folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        self.plugins: Path = build.folder / "libfake_plugins.so"
        plugins = ctypes.CDLL(str(self.plugins))
        for part in library.tables:
            plugins.fake_plugins_set(part.encode(), library.text(part).encode())
        self._library, self.parts = library, set(library.tables)
        self.failure: BaseException | None = None
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

    def run_engines(self, tensorrt: Path, engines: HostEngines) -> ctypes.CDLL:
        """Has the runs of a stand-in for TensorRT computed; returns its functions."""
        library = ctypes.CDLL(str(tensorrt))
        library.fake_tensorrt_plugins.restype = c_char_p

        def run(given: ctypes._Pointer[FakeRun]) -> None:
            of = given.contents
            if self.failure is not None:
                return
            try:
                tensors = of.tensors[: of.num_tensors]
                engines.run(
                    of.plan[: of.plan_size],
                    of.profile,
                    {t.name.decode(): t.shape[: t.rank] for t in tensors if t.shape},
                    {t.name.decode(): t.address for t in tensors},
                    of.scratch or None,
                )
            except BaseException as error:
                self.failure = error

        self._on_run = OnRun(run)
        library.fake_tensorrt_on_run(self._on_run)
        return library

    def close(self) -> None:
        self.cuda.fake_cuda_on_operation(None)


def _value(kind: str, bits: int) -> int | float:
    if kind in ("pointer", "tensor_map"):
        return bits
    return struct.unpack("<f" if kind == "fp32" else "<i", struct.pack("<I", bits))[0]
