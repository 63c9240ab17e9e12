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
from runtime.normals import MAX_DRAWS, NOISE, normals
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
        self.is_closed = self.is_capturing = False

    def memory(self) -> tuple[int, int]:
        return self.total_nbytes - sum(map(len, self.blocks.values())), self.total_nbytes

    def allocate(self, nbytes: int) -> int:
        assert not self.is_capturing, "CUDA allocates nothing while a graph is captured"
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
        self.is_capturing = True
        try:
            work()
        finally:
            self.is_capturing = False
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
        cfg, top_k, top_p = memory(settings, np.float64, 3)
        raw = memory(logits, np.float32, (1 + is_guided) * batch, length, vocab)
        t = (
            sampler.masked_guidance(cfg)
            if pass_idx
            else sampler.guidance(cfg, scale_idx, num_scales)
        )
        guided = sampler.guide(raw, t) if is_guided else raw
        p = sampler.probabilities(sampler.truncate(guided, int(top_k), top_p))
        (seed_value,) = memory(seed, np.uint64, 1)
        rows = memory(images, np.uint64, batch).tolist()
        drawn = SeededDraws(int(seed_value), rows)(scale_idx, pass_idx, p)
        where = (
            memory(token_mask, np.bool_, batch, length)
            if pass_idx
            else np.ones((batch, length), np.bool_)
        )
        np.copyto(memory(tokens, np.int32, batch, length), drawn, where=where)
        confidence = sampler.confidence(p, drawn)
        np.copyto(memory(confidences, np.float32, batch, length), confidence, where=where)

    def select(
        self, *, confidences: int, candidates: int, selected: int, token_mask: int, batch: int,
        length: int, num_candidates: int, count: int, is_first: bool,
    ) -> None:  # fmt: skip
        among = memory(candidates, np.int32, batch, length)[:, :num_candidates]
        if is_first:
            among = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
        confidence = np.take_along_axis(
            memory(confidences, np.float32, batch, length), among, axis=1
        )
        chosen = sampler.least_confident(confidence, among, count)
        memory(selected, np.int32, batch, length)[:, :count] = chosen
        mask = memory(token_mask, np.bool_, batch, length)
        mask[...] = False
        np.put_along_axis(mask, chosen, True, axis=1)

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        values = memory(image, np.float32, batch, 3, side, side)
        memory(pixels, np.uint8, batch, side, side, 3)[...] = to_uint8(values)


class HostDiffusionKernels:
    """The rule of `runtime.denoising`, on memory given by addresses."""

    def start(
        self, *, state: int, first: int, timestep: int, held_tokens: int, held: int, positions: int,
        images: int, seed: int, counter: int, batch: int, length: int, groups: int,
        next_timestep: int, has_held: bool, held_signal: float, held_noise: float,
    ) -> None:  # fmt: skip
        shape = batch, length, 4 * groups
        places = {"positions": positions, "images": images, "seed": seed, "counter": counter}
        drawn = self._normals(shape, 0, **places)
        memory(first, np.float32, *shape)[...] = drawn
        memory(timestep, np.int32, 1)[...] = next_timestep
        x = memory(state, np.float32, *shape)
        x[...] = drawn
        if has_held:
            self._hold(x, drawn, held_tokens, held, held_signal, held_noise)

    def reverse(
        self, *, state: int, first: int, noise: int, variance: int, timestep: int,
        held_tokens: int, held: int, positions: int, images: int, seed: int, counter: int,
        temperature: int, batch: int, length: int, groups: int, draw: int, next_timestep: int,
        has_variance: bool, has_held: bool, x0_from_state: float, x0_from_noise: float,
        mean_x0: float, mean_x: float, log_upper: float, log_lower: float,
        held_signal: float, held_noise: float,
    ) -> None:  # fmt: skip
        shape = batch, length, 4 * groups
        x = memory(state, np.float32, *shape)
        x0 = x0_from_state * x - x0_from_noise * memory(noise, np.float32, *shape)
        mean = mean_x0 * x0 + mean_x * x
        values = memory(variance, np.float32, *shape) if has_variance else np.float32(1)
        upper = (values + 1) / 2
        log_variance = upper * log_upper + (1 - upper) * log_lower
        places = {"positions": positions, "images": images, "seed": seed, "counter": counter}
        z = self._normals(shape, draw, **places) if draw else 0
        scale = memory(temperature, np.float32, 1)[0]
        x[...] = mean + np.exp(log_variance / 2) * z * scale
        memory(timestep, np.int32, 1)[...] = next_timestep
        if has_held:
            drawn = memory(first, np.float32, *shape)
            self._hold(x, drawn, held_tokens, held, held_signal, held_noise)

    def _normals(
        self, shape: tuple[int, int, int], draw: int, *, positions: int, images: int, seed: int,
        counter: int,
    ) -> np.ndarray:  # fmt: skip
        batch, length, channels = shape
        word = int(memory(counter, np.int32, 1)[0])
        stream, (step, first_draw) = word >> 28, divmod(word & ((1 << 28) - 1), MAX_DRAWS)
        return normals(
            int(memory(seed, np.uint64, 1)[0]),
            memory(images, np.uint64, batch).tolist(),
            {number: phase for phase, number in NOISE.items()}[stream],
            step,
            first_draw + draw,
            memory(positions, np.int32, batch, length),
            channels,
        )

    def _hold(
        self, x: np.ndarray, first: np.ndarray, held_tokens: int, held: int, signal: float,
        share: float,
    ) -> None:  # fmt: skip
        tokens = memory(held_tokens, np.float32, *x.shape)
        is_held = memory(held, np.bool_, *x.shape[:2])[..., None]
        np.copyto(x, signal * tokens + share * first, where=is_held)


class OrtEngine:
    """Runs a graph at a profile's sizes, on memory given by addresses."""

    plan_nbytes = 1_000_000
    has_many_launches = False

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
    return memory(address, STORED_AS[spec.dtype], *resolve(spec, sizes))


def memory(address: int, dtype: Any, *shape: int) -> np.ndarray:
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
    is_hmar = bundle.manifest.family == "hmar"
    kernels = HostKernels() if has_kernels and is_hmar else None
    diffusion = HostDiffusionKernels() if has_kernels and not is_hmar else None
    return (
        TensorRTRunner(bundle.manifest, engines, device, options.batches, kernels, diffusion),
        device,
    )
