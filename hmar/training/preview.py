"""Samples of a model in training, on its device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hmar.hmar import HMAR
from hmar.reference import Draw, ReferenceConfig, generate
from hmar.training.sheet import save_sheet
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
