"""Sets of sampled pictures, from the PyTorch reference or from a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from hmar.hmar import HMAR
from hmar.reference import ReferenceConfig
from hmar.training.preview import sample
from hmar.training.sheet import to_uint8
from hmar.vae import VQVAE
from runtime.config import SamplingConfig
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
    labels = np.arange(num_classes * per_class) % num_classes
    images, started = [], time.monotonic()
    for start in range(0, len(labels), batch_size):
        part = labels[start : start + batch_size]
        images.append(draw(part, start))
        done = start + len(part)
        logger.info(
            "%d of %d pictures, %.2f s each",
            done, len(labels), (time.monotonic() - started) / done,
        )  # fmt: skip
        on_batch(done, len(labels))
    return np.concatenate(images), labels


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
