"""Hi-MAR's denoisers with random weights, and their tensors as a bundle has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from export.himar import tensors
from export.weights import WeightsFile
from hmar.config import HiMARConfig
from hmar.diffusion_head import Denoiser, DiTDenoiser, MLPDenoiser
from hmar.himar import HiMAR


def make_denoiser(config: HiMARConfig, name: str) -> tuple[Denoiser, dict[str, Tensor]]:
    """A denoiser with random weights that float16 holds, and its tensors as a bundle has them."""
    torch.manual_seed(0)
    denoiser = (MLPDenoiser if name == "mlp" else DiTDenoiser)(config).requires_grad_(False)
    for parameter in denoiser.parameters():
        std = 0.5 * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
        parameter.data.normal_(std=std)
        parameter.data.copy_(parameter.half())
    weights = WeightsFile("weights.bin")
    if name == "mlp":
        model = SimpleNamespace(pivot_denoiser=denoiser)
        tensors._add_mlp_denoiser(weights, cast(HiMAR, model), torch.float16)
    else:
        model = SimpleNamespace(dense_denoiser=denoiser, config=config)
        tensors._add_dit_denoiser(weights, cast(HiMAR, model), torch.float16)
    found = {}
    for tensor, entry in weights.entries.items():
        assert entry.load is not None
        found[tensor] = entry.load().reshape(entry.shape).to(entry.dtype).contiguous()
    return denoiser, found
