"""Recordings of a bundle's generations for a GPU, which need not be here."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np

from plugins_trt.loader import PluginError, open_library, package_version
from runtime.backends.device_values import BufferPool
from runtime.backends.generation import Generation, Inputs, Plan
from runtime.backends.kernel_engines import planned_engines
from runtime.backends.kernel_library import Part, read_table
from runtime.backends.planned_engine import PlannedEngine
from runtime.backends.recorder import (
    Block,
    Layout,
    RecordingDevice,
    RecordingKernels,
    offset_in_file,
)
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig, SamplingConfig
from runtime.engine_manifest import ENGINES
from runtime.errors import BackendUnavailableError, DeviceMemoryError, EngineBuildError
from runtime.launches import KernelTable
from runtime.recording import (
    CONSTANTS,
    DATA_FILE,
    FIRST_WEIGHTS,
    FORMAT_VERSION,
    INDEX_FILE,
    INPUTS,
    SCRATCH,
    Contents,
    Piece,
    Pointer,
    RecordedPlan,
    Recording,
    RecordingEntry,
    RecordingFolder,
    RecordingIndex,
    file_spec,
)
from runtime.stages import align

logger = logging.getLogger(__name__)

Tables = Mapping[Part, KernelTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What recordings need of a plugin library, for one GPU.

    Attributes:
        tables: its kernels, by part.
        digests: SHA-256 of the text of the tables, by part.
    """

    tables: Tables
    digests: dict[str, str]

    @classmethod
    def built(cls, gpu: str) -> Library:
        """The library that `plugins_trt.loader` finds.

        Raises:
            BackendUnavailableError: there is none, or it has no kernels for this GPU.
        """
        try:
            return cls.read(open_library("trt").path, gpu)
        except PluginError as error:
            raise BackendUnavailableError(f"recordings need the plugin library: {error}") from error

    @classmethod
    def read(cls, path: Path, gpu: str) -> Library:
        """What a library holds; needs no GPU.

        Raises:
            BackendUnavailableError: the library has no kernels for this GPU.
        """
        parts: tuple[Part, ...] = get_args(Part)
        return cls(
            tables={part: read_table(path, part, gpu) for part in parts},
            digests={part: hashlib.sha256(_table_text(path, part)).hexdigest() for part in parts},
        )


def _table_text(path: Path, part: Part) -> bytes:
    table = getattr(ctypes.CDLL(str(path)), f"hmar_{part}_table")
    table.restype = ctypes.c_char_p
    return bytes(table())


def recordings_folder(bundle: Bundle, gpu: str) -> Path:
    return bundle.folder / ENGINES / f"{gpu}_recordings"


def make_recordings(
    bundle: Bundle,
    gpu: str,
    batches: Sequence[int],
    samplings: Sequence[SamplingConfig],
    *,
    library: Library | None = None,
    force: bool = False,
) -> RecordingFolder:
    """Records what is missing of a bundle's generations.

    Args:
        gpu: compute capability, as `sm90`.
        batches: numbers of images, ascending.
        samplings: settings whose plans are recorded, for every batch.
        library: the plugin library; default: the built one.
        force: record again what is there and fits.

    Raises:
        BackendUnavailableError: the library is not built, or lacks kernels for this bundle or GPU.
        EngineBuildError: the recordings cannot be written; what was there stays as it was.
    """
    library = library or Library.built(gpu)
    model = bundle.manifest.hmar if bundle.manifest.family == "hmar" else None
    if model is None:
        raise BackendUnavailableError("recordings are of HMAR, this bundle is of another family")
    # in this order, each once
    plans = list(dict.fromkeys(Plan.of(s, model, batch) for batch in batches for s in samplings))
    folder = recordings_folder(bundle, gpu)
    if not force and (found := _fitting(folder, bundle, library, plans)) is not None:
        return found
    start = time.perf_counter()
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".recordings-") as temporary:
            partial = Path(temporary) / "new"
            partial.mkdir()
            with (partial / DATA_FILE).open("wb") as data:
                writer = _Writer(bundle, gpu, library, batches, partial, data)
                entries = tuple(writer.record(plan, i) for i, plan in enumerate(plans))
                index = writer.index(entries)
            (partial / INDEX_FILE).write_text(index.to_json(), encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(temporary) / "old")
            os.replace(partial, folder)
            shutil.rmtree(Path(temporary) / "old", ignore_errors=True)
    except OSError as error:
        raise EngineBuildError(f"{folder}: cannot be written: {error.strerror or error}") from error
    logger.info(
        "%s: %d recordings, %.1f MiB of data, %.2f s",
        folder.name,
        len(entries),
        index.data_file.nbytes / (1 << 20),
        time.perf_counter() - start,
    )
    return RecordingFolder(folder=folder, index=index)


def _fitting(
    folder: Path, bundle: Bundle, library: Library, plans: Sequence[Plan]
) -> RecordingFolder | None:
    """The recordings that are there, if they are what would be made."""
    if not (folder / INDEX_FILE).is_file():
        return None
    found = RecordingFolder.open(folder)
    is_same = (
        not found.mismatches(bundle, library.digests)
        and found.index.runtime_version == package_version()
        and [entry.plan for entry in found.index.generations] == [_recorded(p) for p in plans]
    )
    return found if is_same else None


def _recorded(plan: Plan) -> RecordedPlan:
    return RecordedPlan(
        batch=plan.batch,
        schedule=plan.schedule,
        is_guided=plan.is_guided,
        is_mask_guided=plan.is_mask_guided,
    )


class _Writer:
    """Records the plans of one bundle and GPU, and what their memory is filled with."""

    def __init__(
        self,
        bundle: Bundle,
        gpu: str,
        library: Library,
        batches: Sequence[int],
        folder: Path,
        data: BinaryIO,
    ) -> None:
        self._bundle, self._gpu, self._library = bundle, gpu, library
        self._folder, self._data = folder, data
        self._written: dict[bytes, int] = {}  # offsets in the data file, by digest
        self._device = RecordingDevice()
        config = BackendConfig(name="trt", decoder="kernels", transformer="kernels")
        self._engines: dict[str, PlannedEngine] = dict(
            planned_engines(bundle, config, self._device, batches, self._kernels)
        )
        self._weights = list(self._device.blocks)

    def _kernels(self, part: Part) -> RecordingKernels:
        return RecordingKernels(part, self._library.tables[part], self._device)

    def record(self, plan: Plan, number: int) -> RecordingEntry:
        """Writes one recording."""
        recording = self._recorded(plan)
        path = self._folder / f"generation_{number:02d}_b{plan.batch:03d}.json"
        path.write_text(recording.to_json(), encoding="utf-8")
        spec = file_spec(path)
        return RecordingEntry(
            file=spec.file,
            sha256=spec.sha256,
            nbytes=spec.nbytes,
            plan=recording.plan,
            scratch_nbytes=recording.scratch_nbytes,
        )

    def _recorded(self, plan: Plan) -> Recording:
        device, manifest = self._device, self._bundle.manifest
        first = len(device.blocks)
        # a runner of its own: scratch memory is that of this batch
        runner = TensorRTRunner(manifest, self._engines, device, (plan.batch,))
        pool = BufferPool(device)
        kernels = CudaSamplingKernels(self._kernels("sampling"), device.stream)
        inputs = Inputs.empty(plan.batch, pool)
        generation = Generation(
            plan, runner.in_pool(pool), kernels, device, pool, inputs, _never_out_of_memory
        )
        (scratch, constants), layout = self._lay_out(device.blocks[first:])
        indices: dict[tuple[str, str], int] = {}
        operations = tuple(
            layout.operation(noted, indices) for noted in device.graphs[-1].operations
        )
        values = {name: getattr(inputs, name) for name in INPUTS}
        places = {n: layout.place(v.buffer.address, v.nbytes) for n, v in values.items()}
        outputs = [
            layout.place(value.buffer.address, value.nbytes)
            for value in (generation.pixels, generation.image, *generation.tokens)
        ]
        return Recording(
            plan=_recorded(plan),
            scratch_nbytes=scratch.nbytes,
            constants=constants,
            inputs=places,
            pixels=outputs[0],
            image=outputs[1],
            tokens=tuple(outputs[2:]),
            kernels=tuple(indices),
            operations=operations,
        )

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
        manifest = self._bundle.manifest
        weights = tuple(self._contents(block.nbytes, [(0, block)]) for block in self._weights)
        self._data.flush()
        return RecordingIndex(
            format_version=FORMAT_VERSION,
            runtime_version=package_version(),
            gpu=self._gpu,
            tables=self._library.digests,
            weights_sha256=manifest.weights.sha256,
            graphs={name: spec.sha256 for name, spec in manifest.graphs.items()},
            data_file=file_spec(self._folder / DATA_FILE),
            weights=weights,
            generations=entries,
        )


def _never_out_of_memory(what: str, batch: int, error: Exception) -> DeviceMemoryError:
    raise AssertionError(f"{what}: a recording takes no memory") from error
