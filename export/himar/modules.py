"""Tensor-in, tensor-out modules that Hi-MAR's graphs are put together from, beside single ops.

As in `export.modules`: weights are inputs, linear weights come as (in, out), and what is float32 in
every precision has a name that says `_f32`. N rows (the guided batch), l tokens, D width, W width
of a denoiser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.modules import norm_modulate
from hmar.kl_vae import gaussian
from hmar.quant import flatten_map


class Norm(nn.Module):
    """Layer norm with weights."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


def _attend(qkv: Tensor, heads: tuple[int, int, int]) -> Tensor:
    """Attention of packed projections (N, l, 3C) over all tokens, (N, l, C)."""
    q, k, v = qkv.unflatten(-1, heads).permute(2, 0, 3, 1, 4).unbind()
    scores = (q * heads[-1] ** -0.5) @ k.transpose(-1, -2)
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Scale-aware block whose scales are folded into the weights of its norms."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = (3, num_heads, head_dim), eps

    def forward(
        self,
        x: Tensor,
        norm1_weight: Tensor,
        norm1_bias: Tensor,
        gate1: Tensor,
        norm2_weight: Tensor,
        norm2_bias: Tensor,
        gate2: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        width = x.shape[-1:]
        h = F.layer_norm(x, width, norm1_weight, norm1_bias, self.eps)
        h = _attend(h @ qkv_weight + qkv_bias, self.heads) @ proj_weight + proj_bias
        x = x + gate1 * h
        h = F.layer_norm(x, width, norm2_weight, norm2_bias, self.eps)
        return x + gate2 * (F.gelu(h @ fc1_weight + fc1_bias) @ fc2_weight + fc2_bias)


class ResBlock(nn.Module):
    """One block of the pivots' denoiser, given its modulation."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        ada: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        shift, scale, gate = ada.chunk(3, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, self.eps) * (1 + scale) + shift
        return x + gate * (F.silu(h @ fc1_weight + fc1_bias) @ fc2_weight + fc2_bias)


class DiTBlock(nn.Module):
    """One block of the dense tokens' denoiser."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = (3, num_heads, head_dim), eps

    def forward(
        self,
        x: Tensor,
        act: Tensor,
        ada_weight: Tensor,
        ada_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        ada = (act @ ada_weight + ada_bias).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = ada
        h = norm_modulate(x, scale1, shift1, self.eps)
        x = x + gate1 * (_attend(h @ qkv_weight + qkv_bias, self.heads) @ proj_weight + proj_bias)
        h = norm_modulate(x, scale2, shift2, self.eps) @ fc1_weight + fc1_bias
        return x + gate2 * (F.gelu(h, approximate="tanh") @ fc2_weight + fc2_bias)


class FinalLayer(nn.Module):
    """Outputs of a denoiser in float32, from a float32 weight and a modulation.

    The first reverse steps multiply an error of the predicted noise by some hundreds.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, ada: Tensor, weight_f32: Tensor, bias_f32: Tensor) -> Tensor:
        shift, scale = ada.float().chunk(2, dim=-1)
        return norm_modulate(x.float(), scale, shift, self.eps) @ weight_f32 + bias_f32


class Decode(nn.Module):
    """Tokens (B, side*side, C) float32 to images float32: 0 black, 1 white, not clipped."""

    def __init__(
        self,
        decoder: nn.Module,
        post_quant_conv: nn.Module,
        latent_scale: float,
        side: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = decoder, post_quant_conv
        self.latent_scale, self.side, self.dtype = latent_scale, side, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        latent = (tokens / self.latent_scale).to(self.dtype).transpose(1, 2)
        latent = latent.unflatten(2, (self.side, self.side))
        image = self.decoder(self.post_quant_conv(latent)).float()
        return image / 2 + 0.5


class Encode(nn.Module):
    """Images (B, 3, H, W) float32 in [0, 1] to the Gaussian of dense tokens.

    Its mean and standard deviation are (B, side*side, C) float32 each.
    """

    def __init__(self, encoder: nn.Module, quant_conv: nn.Module, latent_scale: float) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.latent_scale = encoder, quant_conv, latent_scale

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = gaussian(self.quant_conv(self.encoder(image * 2 - 1)))
        return flatten_map(mean * self.latent_scale), flatten_map(std * self.latent_scale)
