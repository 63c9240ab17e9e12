"""Replays recordings on the host: the plain reading of their format."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.shared_graphs import has_shared_graphs, run_by_shared_graphs
from runtime.bundle import STORED_AS, Bundle
from runtime.denoising import Denoising
from runtime.engine_plan import pad_rows
from runtime.normals import NOISE, second_word
from runtime.recording import (
    NULL,
    Contents,
    Copy,
    GraphPlan,
    Launch,
    Place,
    Pointer,
    RecordedPlan,
    Recording,
    Run,
    SamplingPlan,
)
from runtime.recording_reader import RecordingFolder, read_piece
from tests.host_device import HostDevice
from tests.host_engines import HostEngines
from tests.host_library import HostLibrary


class Replay:
    """One recording with its memory, which begins as NaN where nothing fills it."""

    def __init__(
        self, bundle: Bundle, folder: RecordingFolder, recording: Recording, library: HostLibrary
    ) -> None:
        self._bundle, self._folder, self._library = bundle, folder, library
        self.engines = HostEngines(bundle)
        self.recording, self._device = recording, HostDevice()
        scratch = Contents(nbytes=recording.scratch_nbytes)
        buffers = (scratch, recording.constants, *folder.index.weights)
        self._bases = [self._fill(contents) for contents in buffers]

    def _fill(self, contents: Contents) -> int:
        base = self._device.allocate(contents.nbytes)
        for piece in contents.pieces:
            values = read_piece(piece, self._bundle, self._folder.folder)
            ctypes.memmove(base + piece.at, values, piece.nbytes)
        for at, nbytes in contents.zeros:
            self._device.zero(base + at, nbytes)
        return base

    def address(self, place: Pointer | Place) -> int:
        return 0 if place == NULL else self._bases[place.buffer] + place.offset

    def write(self, **inputs: np.ndarray) -> None:
        assert set(inputs) == set(self.recording.inputs)
        for name, array in inputs.items():
            place = self.recording.inputs[name]
            assert array.nbytes == place.nbytes
            self._device.upload(self.address(place), array)

    def run(self) -> None:
        for operation in self.recording.operations:
            if isinstance(operation, Launch):
                values = [
                    self.address(a) if isinstance(a, Pointer) else a for a in operation.arguments
                ]
                part, name = self.recording.kernels[operation.kernel]
                self._library.launch_all(part, name, operation.grid, HostDevice.stream, values)
            elif isinstance(operation, Copy):
                target, source = self.address(operation.target), self.address(operation.source)
                self._device.copy(target, source, operation.nbytes)
            elif isinstance(operation, Run):
                self._run(operation)
            else:
                self._device.zero(self.address(operation.place), operation.place.nbytes)

    def _run(self, run: Run) -> None:
        of = self._folder.index.engines
        assert of is not None
        plan = (self._folder.folder.parent / of.folder / of.plans[run.plan].file).read_bytes()
        self.engines.run(
            plan,
            run.profile,
            {tensor.name: tensor.shape for tensor in run.inputs},
            {t.name: self.address(t.place) for t in (*run.inputs, *run.outputs)},
            None if run.scratch is None else self.address(run.scratch),
        )

    def read(self, place: Place, dtype: str, *shape: int) -> np.ndarray:
        array = np.empty(shape, dtype)
        assert array.nbytes == place.nbytes
        self._device.download(array, self.address(place))
        return array


class ReplayRunner(StepRunner):
    """Runs either family by recordings of graphs and samplings.

    Attributes:
        used: indices of the recordings that ran.
    """

    def __init__(self, bundle: Bundle, folder: RecordingFolder, library: HostLibrary) -> None:
        super().__init__(bundle.manifest)
        self._bundle, self._folder, self._library = bundle, folder, library
        self._replays: dict[int, Replay] = {}
        self.used: set[int] = set()

    @property
    def name(self) -> str:
        return "replay"

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value)

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        spec = self.manifest.graphs[graph]
        is_recorded = any(
            isinstance(e.plan, GraphPlan) and e.plan.graph == graph
            for e in self._folder.index.recordings
        )
        if has_shared_graphs(spec) and not is_recorded:
            return run_by_shared_graphs(self.manifest, graph, feeds, self._run)
        count = len(feeds[spec.inputs[0].name])

        def fits(plan: RecordedPlan) -> bool:
            return (
                isinstance(plan, GraphPlan)
                and plan.graph == graph
                and all(plan.inputs[i.name][1:] == feeds[i.name].shape[1:] for i in spec.inputs)
                and plan.inputs[spec.inputs[0].name][0] >= count
            )

        replay, plan = self._find(fits)
        assert isinstance(plan, GraphPlan)
        arrays = {}
        for tensor in spec.inputs:
            rows = plan.inputs[tensor.name][0]
            array = feeds[tensor.name].astype(STORED_AS[tensor.dtype], copy=False)
            arrays[tensor.name] = pad_rows(array, rows, 1)
        replay.write(**arrays)
        replay.run()
        return [
            replay.read(
                replay.recording.outputs[tensor.name],
                np.dtype(STORED_AS[tensor.dtype]).name,
                *plan.outputs[tensor.name],
            )[:count]
            for tensor in spec.outputs
        ]

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        graph, (count, length) = self.manifest.graph(step.kind), step.positions.shape

        def fits(plan: RecordedPlan) -> bool:
            wanted = graph, length, step.schedule.timesteps
            return (
                isinstance(plan, SamplingPlan)
                and (plan.graph, plan.length, plan.timesteps) == wanted
                and plan.has_held == (step.held is not None)
                and plan.batch >= count
            )

        replay, plan = self._find(fits)
        B, halves, C = plan.batch, 1 + step.is_guided, self.manifest.himar.token_channels
        cond = np.zeros((halves, B, *head_cond.shape[1:]), head_cond.dtype)
        cond[:, :count] = head_cond.reshape(halves, count, *head_cond.shape[1:])
        positions, held = np.zeros((B, length), np.int32), np.zeros((B, length), np.bool_)
        held_tokens, indices = np.zeros((B, length, C), np.float32), np.zeros(B, np.uint64)
        positions[:count], indices[:count] = step.positions, images
        if step.held is not None:
            held[:count], held_tokens[:count] = step.held.mask, step.held.tokens
        replay.write(
            head_cond=cond,
            scale=np.array([step.weight], np.float32),
            held_tokens=held_tokens,
            held=held,
            positions=positions,
            images=indices,
            seed=np.array([seed], np.uint64),
            counter=np.array([second_word(NOISE[step.phase], step.step_idx, 0)], np.int32),
            temperature=np.array([step.temperature], np.float32),
        )
        replay.run()
        return replay.read(replay.recording.outputs["tokens"], "float32", B, length, C)[:count]

    def _find(self, fits: Callable[[RecordedPlan], bool]) -> tuple[Replay, RecordedPlan]:
        entries = self._folder.index.recordings
        index = next(i for i, entry in enumerate(entries) if fits(entry.plan))
        if index not in self._replays:
            recording = self._folder.recording(entries[index])
            self._replays[index] = Replay(self._bundle, self._folder, recording, self._library)
        self.used.add(index)
        return self._replays[index], entries[index].plan
