"""Kernels of the plugin library that the runtime launches itself, by address."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from runtime.backends.cuda import CudaDevice, import_cuda
from runtime.backends.tensor_maps import TensorMap
from runtime.errors import BackendError, BackendUnavailableError
from runtime.launches import KernelTable

MULTIPROCESSORS = 132  # of the card that the tables are for
Part = Literal["sampling", "decoder", "transformer", "glue"]

C_TYPES: dict[str, Any] = {
    "pointer": ctypes.c_uint64,
    "i32": ctypes.c_int32,
    "fp32": ctypes.c_float,
}


class Kernels(Protocol):
    """Kernels of one architecture."""

    @property
    def table(self) -> KernelTable: ...

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        """Puts a kernel onto a stream.

        Args:
            grid: up to three numbers of programs.
            arguments: by name of the parameter; those left out are 0.
        """


class KernelLibrary:
    """Kernels that were compiled ahead of time, of the plugin library.

    Args:
        library: `libhmar_plugins.so`.
        part: which of its kernels.
        device: the GPU that they are for.

    Raises:
        BackendUnavailableError: the library has no such kernels for this GPU, or cuda.bindings is
            not installed.
        BackendError: CUDA fails.
    """

    def __init__(self, library: Path, part: Part, device: CudaDevice) -> None:
        self._cuda, self._part = import_cuda("driver"), part
        self.table: KernelTable = read_table(library, part, device.gpu, device.multiprocessors)
        image = getattr(ctypes.CDLL(str(library)), f"hmar_{part}_image")
        image.restype = ctypes.c_void_p
        (self._module,) = self._call("cuModuleLoadData", image())
        self._functions = {name: self._load(name) for name in self.table}

    def _load(self, name: str) -> Any:
        (function,) = self._call("cuModuleGetFunction", self._module, name.encode())
        # more than 48 KiB must be asked for
        attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", function, attribute, self.table[name]["shared_bytes"])
        return function

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        entry = self.table[name]
        if unknown := set(arguments) - set(entry["parameters"]):
            raise ValueError(f"kernel {name} has no parameters {sorted(unknown)}")
        values = [_value(entry, parameter, arguments) for parameter in entry["parameters"]]
        addresses = (ctypes.c_void_p * len(values))(
            *(v.address if isinstance(v, TensorMap) else ctypes.addressof(v) for v in values)
        )
        self._call(
            "cuLaunchKernelEx",
            self._configuration(entry, grid, stream),
            self._functions[name],
            ctypes.addressof(addresses),
            0,
        )

    def _configuration(self, entry: Mapping[str, Any], grid: Sequence[int], stream: int) -> Any:
        cuda, config = self._cuda, self._cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = entry["threads"], 1, 1
        config.sharedMemBytes, config.hStream = entry["shared_bytes"], cuda.CUstream(stream)
        if entry.get("overlaps", False):
            attribute, value = cuda.CUlaunchAttribute(), cuda.CUlaunchAttributeValue()
            value.programmaticStreamSerializationAllowed = 1
            ids = cuda.CUlaunchAttributeID
            attribute.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value = value
            config.attrs, config.numAttrs = [attribute], 1
        return config

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._cuda, function)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"{self._part} kernels: {function}: {status.name}")
        return tuple(results)


def _value(entry: Mapping[str, Any], parameter: str, arguments: Mapping[str, int | float]) -> Any:
    """What a kernel is passed for a parameter."""
    kind, value = entry["parameters"][parameter], arguments.get(parameter, 0)
    if kind == "tensor_map":
        return TensorMap.of(entry["tensor_maps"][parameter], int(value), arguments)
    return C_TYPES[kind](value)


def read_table(
    library: Path, part: Part, gpu: str, multiprocessors: int = MULTIPROCESSORS
) -> KernelTable:
    """The kernels of a GPU in the plugin library; needs no GPU.

    Args:
        multiprocessors: of the GPU; persistent kernels have as many programs as it runs at once.

    Raises:
        BackendUnavailableError: it has none for this GPU.
    """
    table = getattr(ctypes.CDLL(str(library)), f"hmar_{part}_table")
    table.restype = ctypes.c_char_p
    tables: dict[str, KernelTable] = json.loads(table())
    arch = choose_architecture(gpu, tables)
    if arch is None:
        raise BackendUnavailableError(
            f"{library}: {part} kernels for {', '.join(tables) or 'no GPU'}, none for {gpu}; "
            f"if plugins_trt/{part}/aot.py knows this GPU, build the library with "
            "-DHMAR_CUDA_ARCHS that name it"
        )
    return {name: fit_programs(entry, multiprocessors) for name, entry in tables[arch].items()}


def fit_programs(entry: Mapping[str, Any], multiprocessors: int) -> Mapping[str, Any]:
    """The entry of a kernel for a card of so many multiprocessors, or of more."""
    if "programs" not in entry or multiprocessors >= MULTIPROCESSORS:
        return entry
    cluster = entry["constants"].get("CLUSTER", 1)
    clusters = entry["programs"] * multiprocessors // MULTIPROCESSORS // cluster
    return {**entry, "programs": max(clusters, 1) * cluster}


def choose_architecture(gpu: str, available: Mapping[str, Any]) -> str | None:
    """The architecture whose kernels run on a GPU: the same major version, and not a later one."""
    number = int(gpu.removeprefix("sm"))
    fitting = [a for a in available if int(a) // 10 == number // 10 and int(a) <= number]
    return max(fitting, key=int, default=None)
