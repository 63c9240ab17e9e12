"""Samples of a model in training, on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmar.hmar import HMAR
from hmar.reference import Draw, ReferenceConfig, generate
from hmar.training.sheet import save_sheet, to_uint8
from hmar.vae import VQVAE


def draw_random(generator: torch.Generator) -> Draw:
    """Draws every token from the softmax of its logits."""

    def draw(name: str, logits_BlV: Tensor) -> Tensor:
        probabilities = logits_BlV.softmax(dim=-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(
            logits_BlV.shape[:2]
        )

    return draw


def sample(
    model: HMAR,
    tokenizer: VQVAE,
    labels: Sequence[int],
    config: ReferenceConfig,
    generator: torch.Generator,
) -> Tensor:
    """One picture per label in [-1, 1], (B, 3, side, side), on the models' device."""
    with torch.device(next(model.parameters()).device):
        return generate(model, tokenizer, labels, config, draw_random(generator)) * 2 - 1


def sample_classes(
    model: HMAR,
    tokenizer: VQVAE,
    per_class: int,
    config: ReferenceConfig,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, 3) uint8 and labels (N,), `per_class` of every class, in order."""
    labels = np.repeat(np.arange(model.config.num_classes), per_class)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    images = []
    for start in range(0, len(labels), batch_size):
        part = labels[start : start + batch_size].tolist()
        images.append(to_uint8(sample(model, tokenizer, part, config, generator)))
        on_batch(start + len(part), len(labels))
    return np.concatenate(images), labels


def save_samples(
    model: HMAR,
    tokenizer: VQVAE,
    labels: Sequence[int],
    columns: int,
    config: ReferenceConfig,
    seed: int,
    path: Path,
) -> None:
    """Samples one picture per label and writes them in rows."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    save_sheet(sample(model, tokenizer, labels, config, generator), columns, path)
