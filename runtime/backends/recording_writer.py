"""Writes recordings: captures work where nothing runs, and lays its memory out in buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple, assert_never

import numpy as np

from plugins_trt.loader import package_version
from runtime.backends.denoise_loop import DenoiseLoop, LoopPlan, modulated_sizes
from runtime.backends.device_values import BufferPool, DeviceValue, capture
from runtime.backends.diffusion_kernels import CudaDiffusionKernels
from runtime.backends.generation import Generation, Inputs, Plan
from runtime.backends.kernel_engines import planned_engines
from runtime.backends.kernel_library import Part
from runtime.backends.recorded_work import GraphWork, SamplingWork, Work
from runtime.backends.recorder import (
    Block,
    Layout,
    RecordingDevice,
    RecordingEngine,
    RecordingKernels,
    offset_in_file,
)
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.backends.staged_engine import StagedEngine
from runtime.backends.trt import TensorRTRunner
from runtime.backends.trt_engine import Engine
from runtime.bundle import Bundle, FileSpec, Manifest
from runtime.config import BackendConfig
from runtime.diffusion import diffusion_schedule
from runtime.engine_manifest import FUNCTION_BODY, EngineFolder
from runtime.engine_plan import resolve, with_totals
from runtime.errors import BackendUnavailableError, DeviceMemoryError
from runtime.launches import KernelTable
from runtime.recording import (
    CONSTANTS,
    DATA_FILE,
    FIRST_WEIGHTS,
    FORMAT_VERSION,
    SCRATCH,
    Contents,
    Engines,
    GenerationPlan,
    GraphPlan,
    Piece,
    Place,
    Pointer,
    RecordedPlan,
    Recording,
    RecordingEntry,
    RecordingIndex,
    SamplingPlan,
)
from runtime.recording_reader import file_spec
from runtime.stages import align

KERNELS_ALONE = BackendConfig(
    name="trt", decoder="kernels", transformer="kernels", denoisers="kernels"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What recordings are made from.

    Attributes:
        gpu: compute capability, as `sm90`.
        tables: kernels of the plugin library for this GPU, by part.
        digests: SHA-256 of the text of these tables.
        engines: run what no kernels run; None = kernels run all.
    """

    bundle: Bundle
    gpu: str
    tables: Mapping[Part, KernelTable]
    digests: dict[str, str]
    engines: EngineFolder | None


class Captured(NamedTuple):
    """Work that the device has noted last, and its inputs and outputs: (address, bytes)."""

    inputs: dict[str, tuple[int, int]]
    outputs: dict[str, tuple[int, int]]


def recorded_plan(work: Work, manifest: Manifest) -> RecordedPlan:
    """The plan of some work, as recordings name it."""
    if isinstance(work, Plan):
        return GenerationPlan(
            batch=work.batch,
            schedule=work.schedule,
            is_guided=work.is_guided,
            is_mask_guided=work.is_mask_guided,
        )
    if isinstance(work, GraphWork):
        spec, sizes = manifest.graphs[work.graph], with_totals(dict(work.dims))
        inputs, outputs = (
            {tensor.name: resolve(tensor, sizes) for tensor in tensors}
            for tensors in (spec.inputs, spec.outputs)
        )
        return GraphPlan(batch=work.batch, graph=work.graph, inputs=inputs, outputs=outputs)
    return SamplingPlan(
        batch=work.batch,
        graph=work.graph(manifest),
        length=work.length,
        timesteps=work.timesteps,
        has_held=work.phase == "dense",
    )


def engines_of(folder: EngineFolder) -> Engines:
    """The engines of a folder, as recordings name them."""
    manifest = folder.manifest
    return Engines(
        folder=folder.folder.name,
        library=manifest.library,
        library_version=manifest.library_version,
        needs_plugin=any(
            entry.attention not in (None, FUNCTION_BODY) for entry in manifest.engines.values()
        ),
        plans=tuple(
            FileSpec(file=plan.file, sha256=plan.sha256, nbytes=plan.nbytes)
            for entry in manifest.engines.values()
            for plan in entry.plans
        ),
    )


class Writer:
    """Records the work of one bundle and GPU, and what its memory is filled with.

    Args:
        batches: numbers of images that kernels are planned for.
        folder: is written to.
        data: the file DATA_FILE there.

    Raises:
        BackendUnavailableError: neither kernels nor engines run a graph.
    """

    def __init__(
        self, source: Source, batches: Sequence[int], folder: Path, data: BinaryIO
    ) -> None:
        self._source, self._folder, self._data = source, folder, data
        self._bundle, self._manifest = source.bundle, source.bundle.manifest
        self._written: dict[bytes, int] = {}  # offsets in the data file, by digest
        self._device = RecordingDevice()
        self._engines: dict[str, Engine] = dict(
            planned_engines(self._bundle, self._config(), self._device, batches, self._kernels)
        )
        self._weights = list(self._device.blocks)
        if source.engines is not None:
            self._engines = self._recording_engines(source.engines) | self._engines

    def _config(self) -> BackendConfig:
        if self._source.engines is not None:
            return BackendConfig(name="trt")
        if self._manifest.family == "himar":
            return KERNELS_ALONE
        return BackendConfig(name="trt", decoder="kernels", transformer="kernels")

    def _recording_engines(self, folder: EngineFolder) -> dict[str, Engine]:
        engines: dict[str, Engine] = {}
        index = 0
        for graph, entry in folder.manifest.engines.items():
            parts, spec = [], self._manifest.graphs[graph]
            for plan in entry.plans:
                of = plan.stage or spec
                parts.append(
                    RecordingEngine(
                        index,
                        plan.nbytes,
                        of.inputs,
                        of.outputs,
                        entry.profiles,
                        plan.activation_nbytes,
                        self._device,
                    )
                )
                index += 1
            stages = [plan.stage for plan in entry.plans if plan.stage is not None]
            engines[graph] = StagedEngine(parts, stages) if stages else parts[0]
        return engines

    def _kernels(self, part: Part) -> RecordingKernels:
        if part not in self._source.tables:
            raise BackendUnavailableError(
                f"the plugin library has no {part} kernels for {self._source.gpu}"
            )
        return RecordingKernels(part, self._source.tables[part], self._device)

    def record(self, work: Work, number: int) -> RecordingEntry:
        """Writes one recording."""
        recording = self._recorded(work)
        path = self._folder / f"{number:03d}_{recording.plan.of}.json"
        path.write_text(recording.to_json(), encoding="utf-8")
        spec = file_spec(path)
        return RecordingEntry(
            file=spec.file,
            sha256=spec.sha256,
            nbytes=spec.nbytes,
            plan=recording.plan,
            scratch_nbytes=recording.scratch_nbytes,
        )

    def _recorded(self, work: Work) -> Recording:
        first = len(self._device.blocks)
        captured = self._capture(work)
        (scratch, constants), layout = self._lay_out(self._device.blocks[first:])
        indices: dict[tuple[str, str], int] = {}
        noted = self._device.graphs.pop().operations
        operations = tuple(layout.operation(operation, indices) for operation in noted)

        def places(given: dict[str, tuple[int, int]]) -> dict[str, Place]:
            return {name: layout.place(*at) for name, at in given.items()}

        return Recording(
            plan=recorded_plan(work, self._manifest),
            scratch_nbytes=scratch.nbytes,
            constants=constants,
            inputs=places(captured.inputs),
            outputs=places(captured.outputs),
            kernels=tuple(indices),
            operations=operations,
        )

    def _capture(self, work: Work) -> Captured:
        if isinstance(work, Plan):
            return self._capture_generation(work)
        if isinstance(work, GraphWork):
            return self._capture_graph(work)
        if isinstance(work, SamplingWork):
            return self._capture_sampling(work)
        assert_never(work)

    def _capture_generation(self, plan: Plan) -> Captured:
        device, pool = self._device, BufferPool(self._device)
        kernels = CudaSamplingKernels(self._kernels("sampling"), device.stream)
        inputs = Inputs.empty(plan.batch, pool)
        runner = self._runner(plan.batch).in_pool(pool)
        generation = Generation(
            plan, runner, kernels, device, pool, pool, inputs, _never_out_of_memory
        )
        outputs = {"pixels": generation.pixels, "image": generation.image}
        outputs |= {f"s{k}_tokens": tokens for k, tokens in enumerate(generation.tokens)}
        return Captured(_inputs(inputs), {name: _at(value) for name, value in outputs.items()})

    def _capture_sampling(self, work: SamplingWork) -> Captured:
        device = self._device
        results, kept = BufferPool(device), BufferPool(device)
        plan = LoopPlan.of(
            self._manifest.graphs[work.graph(self._manifest)].kind,
            work.batch,
            work.length,
            work.timesteps,
            has_held=work.phase == "dense",
            modulated=modulated_sizes(self._manifest, self._engines),
        )
        loop = DenoiseLoop(
            plan,
            diffusion_schedule(work.diffusion_steps),
            self._runner(work.batch).in_pool(results),
            CudaDiffusionKernels(self._kernels("sampling"), device.stream),
            device,
            results,
            kept,
        )
        return Captured(_inputs(loop.inputs), {"tokens": _at(loop.tokens)})

    def _capture_graph(self, work: GraphWork) -> Captured:
        device, spec = self._device, self._manifest.graphs[work.graph]
        pool, sizes = BufferPool(device), with_totals(dict(work.dims))
        runner = self._runner(work.batch).in_pool(pool)
        feeds = {t.name: DeviceValue.empty(t.dtype, resolve(t, sizes), pool) for t in spec.inputs}
        results: dict[str, DeviceValue] = {}

        def run() -> None:
            results.clear()
            results.update(runner.run(work.graph, feeds))

        capture(device, pool, run)
        return Captured(
            {name: _at(value) for name, value in feeds.items()},
            {name: _at(value) for name, value in results.items()},
        )

    def _runner(self, batch: int) -> TensorRTRunner:
        """One of its own: scratch memory is that of this batch, or of the next with engines."""
        batches = [batch]
        if self._source.engines is not None:
            built = self._source.engines.manifest.batches
            batches = [min((b for b in built if b >= batch), default=batch)]
        return TensorRTRunner(self._manifest, self._engines, self._device, batches)

    def _lay_out(self, blocks: Sequence[Block]) -> tuple[tuple[Contents, Contents], Layout]:
        """The buffers SCRATCH and CONSTANTS, of blocks one behind the other."""
        places = {b.address: Pointer(FIRST_WEIGHTS + i, 0) for i, b in enumerate(self._weights)}
        ends, filled = [0, 0], []
        for block in blocks:
            buffer = CONSTANTS if block.is_filled else SCRATCH
            places[block.address] = Pointer(buffer, ends[buffer])
            if block.is_filled:
                filled.append((ends[buffer], block))
            ends[buffer] += align(block.nbytes)
        scratch = Contents(nbytes=ends[SCRATCH])
        return (scratch, self._contents(ends[CONSTANTS], filled)), Layout(self._device, places)

    def _contents(self, nbytes: int, blocks: Sequence[tuple[int, Block]]) -> Contents:
        """A buffer of blocks at offsets."""
        return Contents(
            nbytes=nbytes,
            pieces=tuple(
                self._piece(start + offset, array)
                for start, block in blocks
                for offset, array in block.arrays.items()
            ),
            zeros=tuple(
                (start + offset, size) for start, block in blocks for offset, size in block.zeros
            ),
        )

    def _piece(self, at: int, array: np.ndarray) -> Piece:
        weights = self._bundle.path(self._bundle.manifest.weights)
        offset = offset_in_file(array, weights)
        if offset is not None:
            return Piece(at, array.nbytes, "weights", offset)
        values = array.tobytes()
        digest = hashlib.sha256(values).digest()
        if digest not in self._written:
            self._written[digest] = self._data.tell()
            self._data.write(values)
            self._data.write(bytes(align(array.nbytes) - array.nbytes))
        return Piece(at, array.nbytes, "data", self._written[digest])

    def index(self, entries: tuple[RecordingEntry, ...]) -> RecordingIndex:
        """The index, once all is recorded."""
        source, manifest = self._source, self._manifest
        weights = tuple(self._contents(block.nbytes, [(0, block)]) for block in self._weights)
        self._data.flush()
        return RecordingIndex(
            format_version=FORMAT_VERSION,
            runtime_version=package_version(),
            gpu=source.gpu,
            tables=source.digests,
            weights_sha256=manifest.weights.sha256,
            graphs={name: spec.sha256 for name, spec in manifest.graphs.items()},
            data_file=file_spec(self._folder / DATA_FILE),
            weights=weights,
            engines=None if source.engines is None else engines_of(source.engines),
            recordings=entries,
        )


def _inputs(inputs: object) -> dict[str, tuple[int, int]]:
    """Where the fields of a dataclass of device values are."""
    return {field.name: _at(getattr(inputs, field.name)) for field in fields(inputs)}  # type: ignore[arg-type]


def _at(value: DeviceValue) -> tuple[int, int]:
    return value.buffer.address, value.nbytes


def _never_out_of_memory(what: str, batch: int, error: Exception) -> DeviceMemoryError:
    raise AssertionError(f"{what}: a recording takes no memory") from error
