"""Trained models to files in the published key layouts, in float16."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from hmar.hmar import HMAR
from hmar.vae import VQVAE


def save_tokenizer(path: Path, tokenizer: VQVAE) -> None:
    """Writes the tokenizer."""
    safetensors.torch.save_file(
        {name: p.detach().half().cpu().contiguous() for name, p in tokenizer.named_parameters()},
        path,
    )


def save_hmar(path: Path, model: HMAR) -> None:
    """Writes the transformer, with the scale of every position, which tells the patch numbers."""
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in model.named_parameters()}
    patch_nums = model.config.patch_nums
    tensors["lvl_1L"] = torch.cat(
        [torch.full((1, pn * pn), k) for k, pn in enumerate(patch_nums)], dim=1
    )
    safetensors.torch.save_file(tensors, path)
