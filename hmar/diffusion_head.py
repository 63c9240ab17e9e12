"""The denoisers of Hi-MAR: a residual MLP per pivot, and a Diffusion Transformer over the grid.

Both predict the noise in tokens (R, n, C) from the time and a condition per position; the MLP also
gives a variance value per channel. What does not change from one diffusion step to the next,
`cond` and `time`, is apart from `forward`. Parameter names are those of the published checkpoints.

Shapes: R rows, n tokens of each, C token channels, D width of the condition z, W own width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hmar.config import HiMARConfig
from hmar.himar_layers import MLP, SelfAttention
from hmar.layers import modulate
from hmar.vae import pointwise

FREQUENCIES = 128
MAX_PERIOD = 10000.0


def sinusoids(t_R: Tensor) -> Tensor:
    """Cosines, then sines, of time steps at `FREQUENCIES` frequencies, float64, (R, 256)."""
    exponents = torch.arange(FREQUENCIES, dtype=torch.float64, device=t_R.device) / FREQUENCIES
    angles = t_R.double()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t_R: Tensor) -> Tensor:
        """Embedding (R, W) of time steps of the 1000-step axis."""
        return self.mlp(sinusoids(t_R).to(self.mlp[0].weight.dtype))


def modulation_layer(width: int, num_vectors: int) -> nn.Sequential:
    """`Linear(SiLU(cond))`; index 1 carries the weights, as in the published keys."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, num_vectors * width))


class FinalLayer(nn.Module):
    """Adaptive layer norm without weights, then the output projection."""

    def __init__(self, width: int, out_channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.adaLN_modulation = modulation_layer(width, 2)
        self.linear = nn.Linear(width, out_channels)

    def forward(self, x_RnW: Tensor, y_RnW: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y_RnW).chunk(2, dim=-1)
        return self.linear(modulate(x_RnW, scale, shift, self.eps))


class ResBlock(nn.Module):
    """Gated two-layer perceptron behind an adaptive layer norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = modulation_layer(width, 3)

    def forward(self, x_RnW: Tensor, y_RnW: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y_RnW).chunk(3, dim=-1)
        return x_RnW + gate * self.mlp(self.in_ln(x_RnW) * (1 + scale) + shift)


class MLPDenoiser(nn.Module):
    """Denoiser of pivots: every token on its own."""

    def __init__(self, config: HiMARConfig) -> None:
        super().__init__()
        W, C, eps = config.mlp_width, config.token_channels, config.norm_eps
        self.time_embed = TimeEmbedding(W)
        self.cond_embed = nn.Linear(config.embed_dim, W)
        self.input_proj = nn.Linear(C, W)
        self.res_blocks = nn.ModuleList(ResBlock(W, eps) for _ in range(config.mlp_depth))
        self.final_layer = FinalLayer(W, 2 * C, eps)

    def cond(self, z_RnD: Tensor) -> Tensor:
        """Embedded conditions, (R, n, W)."""
        return self.cond_embed(z_RnD)

    def time(self, t_R: Tensor) -> Tensor:
        """Embedded time steps, (R, 1, W)."""
        return self.time_embed(t_R)[:, None]

    def forward(self, x_RnC: Tensor, time_R1W: Tensor, cond_RnW: Tensor) -> Tensor:
        """Noise and variance value of every channel, (R, n, 2C)."""
        h, y = self.input_proj(x_RnC), time_R1W + cond_RnW
        for block in self.res_blocks:
            h = block(h, y)
        return self.final_layer(h, y)


class PatchEmbedding(nn.Module):
    """Linear layer of every position; the published weights are those of a 1x1 convolution."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 1)

    def forward(self, x_RnC: Tensor) -> Tensor:
        return pointwise(self.proj, x_RnC)


class DiTBlock(nn.Module):
    """Transformer block with an adaptive layer norm per position."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn = SelfAttention(width, num_heads)
        self.mlp = MLP(width, round(width * mlp_ratio), "tanh")
        self.adaLN_modulation = modulation_layer(width, 6)

    def forward(self, x_RnW: Tensor, y_RnW: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(y_RnW).chunk(6, dim=-1)
        x_RnW = x_RnW + gate1 * self.attn(modulate(x_RnW, scale1, shift1, self.eps))
        return x_RnW + gate2 * self.mlp(modulate(x_RnW, scale2, shift2, self.eps))


class DiTDenoiser(nn.Module):
    """Denoiser of dense tokens: the whole grid together, row by row."""

    def __init__(self, config: HiMARConfig) -> None:
        super().__init__()
        W, C, eps = config.dit_width, config.token_channels, config.norm_eps
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_dense, W))
        self.x_embedder = PatchEmbedding(C, W)
        self.t_embedder = TimeEmbedding(W)
        self.c_embedder = PatchEmbedding(config.embed_dim, W)
        self.blocks = nn.ModuleList(
            DiTBlock(W, config.dit_heads, config.dit_mlp_ratio, eps)
            for _ in range(config.dit_depth)
        )
        self.final_layer = FinalLayer(W, C, eps)

    def cond(self, z_RnD: Tensor) -> Tensor:
        """Embedded conditions, (R, n, W)."""
        return self.c_embedder(z_RnD)

    def time(self, t_R: Tensor) -> Tensor:
        """Embedded time steps, (R, 1, W)."""
        return self.t_embedder(t_R)[:, None]

    def forward(self, x_RnC: Tensor, time_R1W: Tensor, cond_RnW: Tensor) -> Tensor:
        """Noise of every channel, (R, n, C)."""
        h, y = self.x_embedder(x_RnC) + self.pos_embed, time_R1W + cond_RnW
        for block in self.blocks:
            h = block(h, y)
        return self.final_layer(h, y)


Denoiser = MLPDenoiser | DiTDenoiser


def guided_noise(
    denoiser: Denoiser, x_BnC: Tensor, time_R1W: Tensor, cond_RnW: Tensor, weight: Tensor | float
) -> Tensor:
    """Output of the denoiser with guided noise, (B, n, C or 2C).

    The noise is `uncond + weight * (cond - uncond)`; variance values are those of the condition.

    Args:
        cond_RnW: from `denoiser.cond`; R = 2B, the conditional half first.
    """
    C = x_BnC.shape[-1]
    cond, uncond = denoiser(x_BnC.repeat(2, 1, 1), time_R1W, cond_RnW).chunk(2)
    noise = uncond[..., :C] + weight * (cond[..., :C] - uncond[..., :C])
    return torch.cat((noise, cond[..., C:]), dim=-1)
