"""Transformer parts of Hi-MAR: packed attention, MLP and the scale-aware block.

Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention over all positions, scale head_dim ** -0.5."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_RlD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_RlD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around a GELU, `approximate` as in PyTorch ("none" = erf)."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class ScaleAwareBlock(nn.Module):
    """Transformer block with a scale and a gate per branch, which depend on the phase alone."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        # (phase, 1, 1, 4D); on the vector that all blocks of a side share
        self.adaLN_scale = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))
        self.adaLN_shift = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, round(width * mlp_ratio), "none")

    def modulation(self, ada_114D: Tensor, phase_idx: int) -> Tensor:
        """Scale and gate of the attention, then of the MLP, (1, 1, 4D).

        Args:
            ada_114D: the vector of this side and phase, (1, 1, 4D).
        """
        return ada_114D * self.adaLN_scale[phase_idx] + self.adaLN_shift[phase_idx]

    def forward(self, x_RlD: Tensor, modulation_114D: Tensor) -> Tensor:
        scale1, gate1, scale2, gate2 = modulation_114D.chunk(4, dim=-1)
        x_RlD = x_RlD + gate1 * self.attn(self.norm1(x_RlD) * (1 + scale1))
        return x_RlD + gate2 * self.mlp(self.norm2(x_RlD) * (1 + scale2))
