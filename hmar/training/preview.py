"""Contact sheets of samples while training."""

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


def save_samples(
    model: HMAR,
    tokenizer: VQVAE,
    labels: Sequence[int],
    columns: int,
    config: ReferenceConfig,
    seed: int,
    path: Path,
) -> None:
    """Samples one picture per label on the models' device and writes them in rows."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        image = generate(model, tokenizer, labels, config, draw_random(generator))
    save_sheet(image * 2 - 1, columns, path)
