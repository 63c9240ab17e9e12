"""Dense-mask oracle of the op: no tricks, any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.block_sparse_attn.spec import NORM_FLOOR, Pattern


def block_mask(cu_seqlens: Tensor, length: int, pattern: Pattern) -> Tensor:
    """Who attends to whom: boolean (T, T), True = row attends to column."""
    position = torch.arange(length, device=cu_seqlens.device)
    block = (position[:, None] >= cu_seqlens[None, 1:]).sum(dim=1)
    if pattern == "block_diagonal":
        return block[:, None] == block[None, :]
    return block[:, None] >= block[None, :]


def block_sparse_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None = None,
    *,
    sm_scale: float,
    pattern: Pattern = "block_diagonal",
    qk_l2_norm: bool = False,
) -> Tensor:
    """Attention output (B, T, H * d); arguments as in `spec`. Done in float32 (float64 stays)."""
    B, T, _, H, d = qkv.shape
    q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).permute(
        2, 0, 3, 1, 4
    )  # (B, H, T, d)
    if qk_l2_norm:
        q = q / q.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR) * scale_mul.view(H, 1, 1)
        k = k / k.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    logits = (q @ k.transpose(-1, -2)) * sm_scale
    logits = logits.masked_fill(~block_mask(cu_seqlens, T, pattern), -torch.inf)
    o = logits.softmax(dim=-1) @ v
    return o.transpose(1, 2).reshape(B, T, H * d).to(qkv.dtype)
