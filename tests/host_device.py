"""Stand-ins for a GPU: memory that is the host's, and engines that ONNX Runtime computes."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime import sampler
from runtime.backends.onnx_stages import GraphCutter
from runtime.backends.staged_engine import StagedEngine
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import STORED_AS, Bundle, GraphSpec, TensorSpec
from runtime.draws import SeededDraws
from runtime.engine_plan import Dims, EngineOptions, plan_engines, resolve, with_totals
from runtime.errors import DeviceMemoryError
from runtime.stages import Stage
from runtime.trajectory import to_uint8

LAYERS = ("matmul", "norm")  # that an engine reports, of 1 and 2 ms
FILL = 0xFF  # NaN as a float, -1 as an index


class HostDevice:
    """Allocates on the host; new memory is filled with NaN."""

    stream = 7

    def __init__(self, total_nbytes: int = 1 << 40) -> None:
        self.total_nbytes = total_nbytes
        self.blocks: dict[int, np.ndarray] = {}
        self.uploads = self.downloads = self.captures = 0
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

    def capture(self, work: Callable[[], None]) -> HostGraph:
        self.captures += 1
        return HostGraph(work)

    def record(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, stop: float) -> float:
        return (stop - start) * 1e3

    def close(self) -> None:
        self.is_closed = True


class HostGraph:
    """Does the work again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self.is_closed = work, False

    def launch(self) -> None:
        assert not self.is_closed
        self._work()

    def close(self) -> None:
        self.is_closed = True


class HostKernels:
    """The rule of `runtime.sampler`, on memory given by addresses."""

    def draw(
        self, *, logits: int, tokens: int, confidences: int, token_mask: int, settings: int,
        seed: int, images: int, batch: int, length: int, vocab: int, scale_idx: int,
        num_scales: int, pass_idx: int, is_guided: bool,
    ) -> None:  # fmt: skip
        cfg, top_k, top_p = _memory(settings, np.float64, 3)
        raw = _memory(logits, np.float32, (1 + is_guided) * batch, length, vocab)
        t = (
            sampler.masked_guidance(cfg)
            if pass_idx
            else sampler.guidance(cfg, scale_idx, num_scales)
        )
        guided = sampler.guide(raw, t) if is_guided else raw
        p = sampler.probabilities(sampler.truncate(guided, int(top_k), top_p))
        (seed_value,) = _memory(seed, np.uint64, 1)
        rows = _memory(images, np.uint64, batch).tolist()
        drawn = SeededDraws(int(seed_value), rows)(scale_idx, pass_idx, p)
        where = (
            _memory(token_mask, np.bool_, batch, length)
            if pass_idx
            else np.ones((batch, length), np.bool_)
        )
        np.copyto(_memory(tokens, np.int32, batch, length), drawn, where=where)
        confidence = sampler.confidence(p, drawn)
        np.copyto(_memory(confidences, np.float32, batch, length), confidence, where=where)

    def select(
        self, *, confidences: int, candidates: int, selected: int, token_mask: int, batch: int,
        length: int, num_candidates: int, count: int, is_first: bool,
    ) -> None:  # fmt: skip
        among = _memory(candidates, np.int32, batch, length)[:, :num_candidates]
        if is_first:
            among = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
        confidence = np.take_along_axis(
            _memory(confidences, np.float32, batch, length), among, axis=1
        )
        chosen = sampler.least_confident(confidence, among, count)
        _memory(selected, np.int32, batch, length)[:, :count] = chosen
        mask = _memory(token_mask, np.bool_, batch, length)
        mask[...] = False
        np.put_along_axis(mask, chosen, True, axis=1)

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        values = _memory(image, np.float32, batch, 3, side, side)
        _memory(pixels, np.uint8, batch, side, side, 3)[...] = to_uint8(values)


class OrtEngine:
    """Runs a graph at a profile's sizes, on memory given by addresses."""

    plan_nbytes = 1_000_000

    def __init__(self, spec: GraphSpec | Stage, path: Path, profiles: Sequence[Dims]) -> None:
        self.profiles = tuple(profiles)
        self.activation_nbytes = tuple(64 + i for i in range(len(profiles)))
        self._spec, self._path = spec, path
        self._session: onnxruntime.InferenceSession | None = None
        self.used: list[int] = []
        self._report: Callable[[str, float], None] | None = None

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
        if self._report is not None:
            for i, layer in enumerate(LAYERS, start=1):
                self._report(layer, float(i))
        feeds = {i.name: _at(addresses[i.name], i, sizes) for i in self._spec.inputs}
        # scratch memory is overwritten by every run
        ctypes.memset(activations, FILL, self.activation_nbytes[profile])
        for spec, value in zip(self._spec.outputs, self._session.run(None, feeds), strict=True):
            _at(addresses[spec.name], spec, sizes)[...] = value

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        self._report = report

    def close(self) -> None:
        self._session = None


def _at(address: int, spec: TensorSpec, sizes: Dims) -> np.ndarray:
    return _memory(address, STORED_AS[spec.dtype], *resolve(spec, sizes))


def _memory(address: int, dtype: Any, *shape: int) -> np.ndarray:
    """The memory at an address, as an array."""
    memory = (ctypes.c_uint8 * math.prod(shape, start=np.dtype(dtype).itemsize)).from_address(
        address
    )
    return np.frombuffer(memory, dtype).reshape(shape)


def whole_engine(bundle: Bundle, graph: str, profiles: Sequence[Dims]) -> OrtEngine:
    """An engine of a bundle's graph."""
    spec = bundle.manifest.graphs[graph]
    return OrtEngine(spec, bundle.path(spec), profiles)


def staged_engine(
    bundle: Bundle, graph: str, profiles: Sequence[Dims], count: int, folder: Path
) -> StagedEngine:
    """The same, cut into up to `count` stages; a folder on the bundle's disk takes their files."""
    source = bundle.path(bundle.manifest.graphs[graph])
    cutter = GraphCutter.open(source)
    parts = cutter.cut(cutter.whole(), count)
    # ONNX Runtime refuses symbolic links out of the folder
    (folder / "weights.bin").hardlink_to(bundle.folder.resolve() / bundle.manifest.weights.file)
    engines = []
    for i, part in enumerate(parts):
        path = folder / f"{graph}.{i:02d}.onnx"
        path.write_bytes(cutter.extract(part).SerializeToString())
        engines.append(OrtEngine(part.stage, path, profiles))
    return StagedEngine(engines, [part.stage for part in parts])


def host_runner(
    bundle: Bundle, options: EngineOptions, *, has_kernels: bool = False
) -> tuple[TensorRTRunner, HostDevice]:
    """A runner on the host, with the engines that these options plan."""
    device = HostDevice()
    engines = {
        spec.graph: whole_engine(bundle, spec.graph, spec.profiles)
        for spec in plan_engines(bundle.manifest, options)
    }
    kernels = HostKernels() if has_kernels else None
    return TensorRTRunner(bundle.manifest, engines, device, options.batches, kernels), device
