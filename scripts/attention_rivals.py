"""Other ways to compute the attention op in PyTorch, for `scripts/bench_attention.py`.

A rival gets its inputs as ours does, packed (B, T, 3, H, d), and prepares masks and views outside
the timed call. With q/k L2 norm the rivals run one compiled kernel for it first. All of them scale
logits by 1 / sqrt(d).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_trt.block_sparse_attn.reference import block_mask
from plugins_trt.block_sparse_attn.spec import NORM_FLOOR, Pattern

Call = Callable[[], Tensor]


@torch.compile(dynamic=False)
def _normalised(qkv: Tensor, scale_mul: Tensor) -> tuple[Tensor, Tensor]:
    q, k, _ = qkv.float().unbind(2)
    q = q / q.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    scale = scale_mul.view(-1, 1) * qkv.shape[-1] ** 0.5  # undoes the rivals' own 1 / sqrt(d)
    return (q * scale).to(qkv.dtype), k.to(qkv.dtype)


def _operands(qkv: Tensor, scale_mul: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unbind(2)
    return (q, k, v) if scale_mul is None else (*_normalised(qkv, scale_mul), v)


def dense_mask(qkv: Tensor, lengths: list[int], pattern: Pattern, scale_mul: Tensor | None) -> Call:
    """One call of PyTorch's attention with a dense boolean mask."""
    mask = block_mask(bounds_of(lengths, qkv.device), qkv.shape[1], pattern)

    def call() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in _operands(qkv, scale_mul))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return o.transpose(1, 2).flatten(2)

    return call


def per_block(qkv: Tensor, lengths: list[int], pattern: Pattern, scale_mul: Tensor | None) -> Call:
    """One call of PyTorch's attention per block, without masks, written into one output."""
    bounds = bounds_of(lengths, qkv.device).tolist()
    B, T, _, H, d = qkv.shape
    out = qkv.new_empty((B, T, H, d))

    def call() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in _operands(qkv, scale_mul))
        for start, stop in pairwise(bounds):
            keys = slice(start if pattern == "block_diagonal" else 0, stop)
            o = F.scaled_dot_product_attention(q[:, :, start:stop], k[:, :, keys], v[:, :, keys])
            out[:, start:stop] = o.transpose(1, 2)
        return out.flatten(2)

    return call


def flex(qkv: Tensor, lengths: list[int], pattern: Pattern, scale_mul: Tensor | None) -> Call:
    """FlexAttention, compiled, with its own sparse block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    T = qkv.shape[1]
    position = torch.arange(T, device=qkv.device)
    bounds = bounds_of(lengths, qkv.device)
    block = (position[:, None] >= bounds[None, 1:]).sum(dim=1)

    def attends(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return block[i] == block[j] if pattern == "block_diagonal" else block[i] >= block[j]

    mask = create_block_mask(attends, None, None, T, T, device=qkv.device.type, _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)

    def call() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in _operands(qkv, scale_mul))
        return compiled(q, k, v, block_mask=mask).transpose(1, 2).flatten(2)

    return call


def varlen(qkv: Tensor, lengths: list[int], pattern: Pattern, scale_mul: Tensor | None) -> Call:
    """PyTorch's variable-length attention; independent blocks only."""
    from torch.nn.attention.varlen import varlen_attn

    return _as_one_pack(varlen_attn, qkv, lengths, scale_mul)


def flash(qkv: Tensor, lengths: list[int], pattern: Pattern, scale_mul: Tensor | None) -> Call:
    """The flash-attn package's variable-length attention, where it is installed."""
    from flash_attn import flash_attn_varlen_func

    return _as_one_pack(flash_attn_varlen_func, qkv, lengths, scale_mul)


def _as_one_pack(
    attend: Callable[..., Tensor], qkv: Tensor, lengths: list[int], scale_mul: Tensor | None
) -> Call:
    """Variable-length attention over the blocks of all rows."""
    B, T, _, H, d = qkv.shape
    bounds, longest = bounds_of(lengths * B, qkv.device), max(lengths)

    def call() -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in _operands(qkv, scale_mul))
        return attend(q, k, v, bounds, bounds, longest, longest).view(B, T, H * d)

    return call


RIVALS: dict[str, Callable[[Tensor, list[int], Pattern, Tensor | None], Call]] = {
    "sdpa-mask": dense_mask,
    "sdpa-per-block": per_block,
    "flex": flex,
    "varlen": varlen,
    "flash-attn": flash,
}
DIAGONAL_ONLY = {"varlen", "flash-attn"}  # have no way to say block_causal


def bounds_of(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    """`cu_seqlens` of blocks of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device).int()
