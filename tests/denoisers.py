"""Hi-MAR's denoisers with random weights, and their tensors as a bundle has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from export.himar import tensors
from export.weights import WeightsFile
from hmar.config import HiMARConfig, KLVAEConfig
from hmar.diffusion_head import Denoiser, DiTDenoiser, MLPDenoiser
from hmar.himar import HiMAR
from hmar.kl_vae import KLVAE


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
    return denoiser, stored(weights)


def make_himar(config: HiMARConfig) -> tuple[HiMAR, dict[str, Tensor]]:
    """The transformer likewise, with both denoisers."""
    torch.manual_seed(0)
    model = HiMAR(config).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        std = 0.5 * parameter[0].numel() ** -0.5 if parameter.dim() == 2 else 0.2
        parameter.data.normal_(mean=float("norm" in name and "weight" in name), std=std)
        parameter.data.copy_(parameter.half())
    weights, small = WeightsFile("weights.bin"), KLVAEConfig(base_channels=32, channel_mult=(1,))
    tensors.lay_out(weights, model, KLVAE(small), torch.float16)
    return model, stored(weights)


def stored(weights: WeightsFile) -> dict[str, Tensor]:
    """Tensors as a bundle has them."""
    found = {}
    for tensor, entry in weights.entries.items():
        assert entry.load is not None
        found[tensor] = entry.load().reshape(entry.shape).to(entry.dtype).contiguous()
    return found
