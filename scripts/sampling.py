"""Sets of sampled pictures, from the PyTorch reference or from a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from hmar.hmar import HMAR
from hmar.reference import ReferenceConfig
from hmar.training.preview import sample
from hmar.training.sheet import to_uint8
from hmar.vae import VQVAE
from runtime.config import BackendName, SamplingConfig
from runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

Sampler = Callable[[np.ndarray, int], np.ndarray]
"""(labels (B,), index of the first picture) -> pictures (B, H, W, 3) uint8."""


def reference_sampler(model: HMAR, tokenizer: VQVAE, config: SamplingConfig, seed: int) -> Sampler:
    """Samples with PyTorch on the models' device; a batch depends on seed and first index."""
    device = next(model.parameters()).device
    settings = ReferenceConfig(
        cfg=config.cfg,
        top_k=config.top_k,
        top_p=config.top_p,
        mask_schedule=config.mask_schedule,
    )

    def draw(labels: np.ndarray, first: int) -> np.ndarray:
        generator = torch.Generator(device).manual_seed((seed << 32) + first)
        return to_uint8(sample(model, tokenizer, labels.tolist(), settings, generator))

    return draw


def bundle_sampler(pipeline: Pipeline, config: SamplingConfig, seed: int) -> Sampler:
    """Samples with the runtime; a picture depends on its label, seed and index only."""

    def draw(labels: np.ndarray, first: int) -> np.ndarray:
        index = range(first, first + len(labels))
        return pipeline.generate(labels.tolist(), seed=seed, image_index=index, sampling=config)

    return draw


def sample_classes(
    draw: Sampler,
    num_classes: int,
    per_class: int,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, 3) uint8 and labels (N,); the classes take turns."""
    parts, total = parts_of(num_classes, per_class, batch_size), num_classes * per_class
    images, started = [], time.monotonic()
    for labels, first in parts:
        images.append(draw(labels, first))
        done = first + len(labels)
        logger.info(
            "%d of %d pictures, %.2f s each", done, total, (time.monotonic() - started) / done
        )
        on_batch(done, total)
    return np.concatenate(images), np.concatenate([labels for labels, _ in parts])


def fill_by_processes(
    batches: BatchFolder,
    bundle: Path,
    backend: BackendName,
    config: SamplingConfig,
    seed: int,
    parts: Sequence[tuple[np.ndarray, int]],
    processes: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Stores batches of a bundle's pictures, drawn by processes of one thread each.

    Many small operations make one process with many threads slower than many with one. Every
    picture is the one that `bundle_sampler` draws.

    Args:
        parts: labels and index of the first picture of every batch.
    """
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), _open_worker, (batches, bundle, backend, config, seed)
    )
    with pool:
        drawn = [pool.submit(_draw_batch, labels, first) for labels, first in parts]
        for done, future in enumerate(as_completed(drawn), start=1):
            future.result()
            on_batch(done, len(parts))


_worker: Sampler | None = None  # of a process of `fill_by_processes`


def _open_worker(
    batches: BatchFolder, bundle: Path, backend: BackendName, config: SamplingConfig, seed: int
) -> None:
    global _worker
    pipeline = Pipeline.load(bundle, backend, threads=1, max_batch=1 << 16, check_weights=False)
    _worker = batches.resuming(bundle_sampler(pipeline, config, seed))


def _draw_batch(labels: np.ndarray, first: int) -> None:
    assert _worker is not None
    _worker(labels, first)


def parts_of(num_classes: int, per_class: int, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """Labels and index of the first picture of every batch; the classes take turns."""
    labels = np.arange(num_classes * per_class) % num_classes
    return [
        (labels[start : start + batch_size], start) for start in range(0, len(labels), batch_size)
    ]


def by_class(images: np.ndarray, num_classes: int, columns: int) -> np.ndarray:
    """The first `columns` pictures of every class, class after class, of `sample_classes`."""
    first = images[: num_classes * columns]
    return first.reshape(-1, num_classes, *images.shape[1:]).swapaxes(0, 1).reshape(first.shape)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class BatchFolder:
    """Batches of an unfinished set on disk, so that a stopped run goes on where it was.

    Args:
        folder: made if it is missing.
        settings: everything the pictures depend on, as JSON values.

    Raises:
        ValueError: the folder holds batches of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        described, note = json.dumps(settings, indent=1) + "\n", folder / "settings.json"
        folder.mkdir(exist_ok=True)
        if not note.exists():
            note.write_text(described)
        elif note.read_text() != described:
            raise ValueError(
                f"{folder}: holds unfinished pictures of other settings; remove it, or choose "
                "another --out"
            )

    def resuming(self, draw: Sampler) -> Sampler:
        """The sampler, except that stored batches are read and new ones are stored."""

        def read_or_draw(labels: np.ndarray, first: int) -> np.ndarray:
            path = self.folder / f"{first:06d}.npy"
            if not path.exists():
                unfinished = path.with_suffix(".tmp")
                with unfinished.open("wb") as file:
                    np.save(file, draw(labels, first))
                os.replace(unfinished, path)
            return np.load(path)

        return read_or_draw

    def remove(self) -> None:
        shutil.rmtree(self.folder)
