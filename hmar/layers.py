"""Transformer blocks of HMAR: adaptive layer norm, attention with optional q/k L2 norm, MLP.

Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmar.config import HMARConfig

MAX_SCALE_MUL = math.log(100.0)  # the learned q scale is exp(min(parameter, this))

KVCache = dict[int, tuple[Tensor, Tensor]]


def modulate(x_NlC: Tensor, scale_N1C: Tensor, shift_N1C: Tensor, eps: float) -> Tensor:
    """Layer norm without affine part, then `(1 + scale)` and `shift`."""
    return F.layer_norm(x_NlC, x_NlC.shape[-1:], eps=eps) * (1 + scale_N1C) + shift_N1C


class AdaLinear(nn.Sequential):
    """`Linear(SiLU(cond))`; index 1 carries the weights, as in the published keys."""

    def __init__(self, embed_dim: int, num_vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(embed_dim, num_vectors * embed_dim))


class Attention(nn.Module):
    """Self-attention whose key projection has no bias."""

    def __init__(self, config: HMARConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.l2_norm, self.sm_scale = config.attn_l2_norm, config.attn_scale
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.num_heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(C))
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.proj = nn.Linear(C, C)

    def qkv_bias(self) -> Tensor:
        """Bias of the packed projection, (3C,)."""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def scale_mul(self) -> Tensor:
        """Factor on the normalised queries, (H,)."""
        return self.scale_mul_1H11.clamp(max=MAX_SCALE_MUL).exp().flatten()

    def forward(
        self,
        x_NlC: Tensor,
        attn_mask: Tensor | None = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attends within x, or over `kv` followed by x.

        Args:
            attn_mask: boolean, broadcastable to (N, H, l, keys), True = attend.
            kv: normalised keys and values of earlier scales, each (N, H, earlier, d).

        Returns:
            The projected output (N, l, C), and keys and values including the present ones.
        """
        N, l, C = x_NlC.shape
        qkv = F.linear(x_NlC, self.mat_qkv.weight, self.qkv_bias())
        q, k, v = qkv.view(N, l, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul().view(1, -1, 1, 1)
            k = F.normalize(k, dim=-1)
        if kv is not None:
            k, v = torch.cat((kv[0], k), dim=2), torch.cat((kv[1], v), dim=2)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=self.sm_scale)
        return self.proj(o.transpose(1, 2).reshape(N, l, C)), (k, v)


class FFN(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, config: HMARConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """One transformer block.

    Modulated by six vectors: gamma1, gamma2, scale1, scale2, shift1, shift2.
    """

    def __init__(self, config: HMARConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attn = Attention(config)
        self.ffn = FFN(config)
        if config.shared_aln:
            self.ada_gss = nn.Parameter(
                torch.randn(1, 1, 6, config.embed_dim) / config.embed_dim**0.5
            )
        else:
            self.ada_lin = AdaLinear(config.embed_dim, 6)

    def modulation(self, cond: Tensor) -> Tensor:
        """The six vectors, (N, 1, 6, C).

        Args:
            cond: class embedding (N, C), or with shared adaLN its shared projection (N, 1, 6, C).
        """
        if cond.dim() == 4:
            return self.ada_gss + cond
        return self.ada_lin(cond).view(cond.shape[0], 1, 6, -1)

    def forward(
        self,
        x_NlC: Tensor,
        ada_N16C: Tensor,
        attn_mask: Tensor | None = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The block's output (N, l, C), and its keys and values; arguments as in `Attention`."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = ada_N16C.unbind(2)
        attn_out, kv = self.attn(modulate(x_NlC, scale1, shift1, self.eps), attn_mask, kv)
        x_NlC = x_NlC + gamma1 * attn_out
        return x_NlC + gamma2 * self.ffn(modulate(x_NlC, scale2, shift2, self.eps)), kv


class HeadNorm(nn.Module):
    """Final adaptive layer norm, modulated by scale and shift."""

    def __init__(self, config: HMARConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.ada_lin = AdaLinear(config.embed_dim, 2)

    def forward(self, x_NlC: Tensor, cond_NC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond_NC).view(cond_NC.shape[0], 1, 2, -1).unbind(2)
        return modulate(x_NlC, scale, shift, self.eps)
