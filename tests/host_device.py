"""Stand-ins for a GPU: memory that is the host's, and engines that ONNX Runtime computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from runtime.backends.trt import TensorRTRunner
from runtime.bundle import STORED_AS, Bundle, TensorSpec
from runtime.engine_plan import Dims, EngineOptions, nbytes, plan_engines, resolve, with_totals
from runtime.errors import DeviceMemoryError

FILL = 0xFF  # NaN as a float, -1 as an index


class HostDevice:
    """Allocates on the host; new memory is filled with NaN."""

    stream = 7

    def __init__(self, total_nbytes: int = 1 << 40) -> None:
        self.total_nbytes = total_nbytes
        self.blocks: dict[int, np.ndarray] = {}
        self.uploads = self.downloads = 0
        self.is_closed = False

    def memory(self) -> tuple[int, int]:
        return self.total_nbytes - sum(map(len, self.blocks.values())), self.total_nbytes

    def allocate(self, nbytes: int) -> int:
        if nbytes > self.memory()[0]:
            raise DeviceMemoryError(f"cudaMalloc ({nbytes / 1e6:.1f} MB): out of memory")
        block = np.full(nbytes, FILL, np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address: int) -> None:
        del self.blocks[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        self.uploads += 1
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        self.downloads += 1
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def zero(self, address: int, nbytes: int) -> None:
        ctypes.memset(address, 0, nbytes)

    def close(self) -> None:
        self.is_closed = True


class OrtEngine:
    """Runs a graph at a profile's sizes, on memory given by addresses."""

    activation_nbytes, plan_nbytes = 64, 1_000_000

    def __init__(self, bundle: Bundle, graph: str, profiles: Sequence[Dims]) -> None:
        self.profiles = tuple(profiles)
        self._spec = bundle.manifest.graphs[graph]
        self._path = bundle.path(self._spec)
        self._session: onnxruntime.InferenceSession | None = None
        self.used: list[int] = []

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        assert activations and stream == HostDevice.stream
        self.used.append(profile)
        sizes = with_totals(self.profiles[profile])
        assert shapes == {i.name: resolve(i, sizes) for i in self._spec.inputs}
        if self._session is None:
            self._session = onnxruntime.InferenceSession(
                self._path, providers=["CPUExecutionProvider"]
            )
        feeds = {i.name: _at(addresses[i.name], i, sizes) for i in self._spec.inputs}
        for spec, value in zip(self._spec.outputs, self._session.run(None, feeds), strict=True):
            _at(addresses[spec.name], spec, sizes)[...] = value

    def close(self) -> None:
        self._session = None


def _at(address: int, spec: TensorSpec, sizes: Dims) -> np.ndarray:
    """The memory at an address, as an array."""
    memory = (ctypes.c_uint8 * nbytes(spec, sizes)).from_address(address)
    return np.frombuffer(memory, STORED_AS[spec.dtype]).reshape(resolve(spec, sizes))


def host_runner(bundle: Bundle, options: EngineOptions) -> tuple[TensorRTRunner, HostDevice]:
    """A runner on the host, with the engines that these options plan."""
    device = HostDevice()
    engines = {
        spec.graph: OrtEngine(bundle, spec.graph, spec.profiles)
        for spec in plan_engines(bundle.manifest, options)
    }
    return TensorRTRunner(bundle.manifest, engines, device, max(options.batches)), device
