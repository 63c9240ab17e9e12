"""Recordings of the work of a bundle's generations for a GPU, which need not be here."""

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
from typing import get_args

from plugins_trt.loader import PluginError, open_library, package_version
from runtime.backends.kernel_library import MULTIPROCESSORS, Part, read_table
from runtime.backends.recorded_work import Settings, Work, work_of
from runtime.backends.recording_writer import Source, Writer, engines_of, recorded_plan
from runtime.bundle import Bundle
from runtime.engine_manifest import ENGINES, EngineFolder
from runtime.errors import BackendUnavailableError, EngineBuildError
from runtime.launches import KernelTable
from runtime.recording import DATA_FILE, INDEX_FILE
from runtime.recording_reader import RecordingFolder

logger = logging.getLogger(__name__)

Tables = Mapping[Part, KernelTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What recordings need of a plugin library, for one GPU.

    Attributes:
        tables: its kernels, by part; parts that have none for this GPU are missing.
        digests: SHA-256 of the text of the tables, by part.
    """

    tables: Tables
    digests: dict[str, str]

    @classmethod
    def built(cls, gpu: str, multiprocessors: int = MULTIPROCESSORS) -> Library:
        """The library that `plugins_trt.loader` finds.

        Args:
            gpu: compute capability, as `sm90`.
            multiprocessors: of the GPU.

        Raises:
            BackendUnavailableError: there is none, or it has no kernels for this GPU.
        """
        try:
            return cls.read(open_library("trt").path, gpu, multiprocessors)
        except PluginError as error:
            raise BackendUnavailableError(f"recordings need the plugin library: {error}") from error

    @classmethod
    def read(cls, path: Path, gpu: str, multiprocessors: int = MULTIPROCESSORS) -> Library:
        """What a library holds; needs no GPU. Arguments as of `built`.

        Raises:
            BackendUnavailableError: the library has no kernels for this GPU.
        """
        tables: dict[Part, KernelTable] = {}
        for part in get_args(Part):
            try:
                tables[part] = read_table(path, part, gpu, multiprocessors)
            except BackendUnavailableError as error:
                if part == "sampling":  # engines cannot do this
                    raise
                logger.info("%s", error)
        digests: dict[str, str] = {
            part: hashlib.sha256(_table_text(path, part)).hexdigest() for part in tables
        }
        return cls(tables=tables, digests=digests)


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
    settings: Sequence[Settings],
    *,
    library: Library | None = None,
    engines: EngineFolder | None = None,
    has_steps: bool = True,
    force: bool = False,
) -> RecordingFolder:
    """Records what is missing of the work of a bundle's generations.

    Args:
        gpu: compute capability, as `sm90`.
        batches: numbers of images, ascending.
        settings: of the bundle's family; their work is recorded for every batch.
        library: the plugin library; default: the built one.
        engines: run what the library's kernels do not; None = there are kernels for all.
        has_steps: of HMAR also record single steps, for generations that do not go at once.
        force: record again what is there and fits.

    Raises:
        BackendUnavailableError: the library is not built, or neither it nor the engines run all of
            this bundle on this GPU.
        EngineIncompatibleError: the engines are for other batches or guidance.
        EngineBuildError: the recordings cannot be written; what was there stays as it was.
    """
    library = library or Library.built(gpu)
    source = Source(
        bundle=bundle, gpu=gpu, tables=library.tables, digests=library.digests, engines=engines
    )
    work = work_of(
        bundle.manifest,
        batches,
        settings,
        has_steps=has_steps,
        has_encoder=engines is not None and "encode" in engines.manifest.engines,
    )
    folder = recordings_folder(bundle, gpu)
    if not force and (found := _fitting(folder, source, work)) is not None:
        return found
    start = time.perf_counter()
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".recordings-") as temporary:
            partial = Path(temporary) / "new"
            partial.mkdir()
            with (partial / DATA_FILE).open("wb") as data:
                writer = Writer(source, batches, partial, data)
                entries = tuple(writer.record(item, i) for i, item in enumerate(work))
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


def _fitting(folder: Path, source: Source, work: Sequence[Work]) -> RecordingFolder | None:
    """The recordings that are there, if they are what would be made."""
    if not (folder / INDEX_FILE).is_file():
        return None
    found = RecordingFolder.open(folder)
    manifest = source.bundle.manifest
    is_same = (
        not found.mismatches(source.bundle, source.digests)
        and found.index.tables == source.digests  # also of parts that had no kernels then
        and found.index.runtime_version == package_version()
        and found.index.engines == (source.engines and engines_of(source.engines))
        and [e.plan for e in found.index.recordings] == [recorded_plan(w, manifest) for w in work]
    )
    return found if is_same else None
