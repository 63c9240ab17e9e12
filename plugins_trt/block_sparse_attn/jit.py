"""The kernel on PyTorch's CUDA tensors, compiled by Triton at first use."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.block_sparse_attn.kernel import (
    block_sparse_attention_kernel,
    normalize_keys_kernel,
)
from plugins_trt.block_sparse_attn.spec import OP_NAME, Attributes
from plugins_trt.block_sparse_attn.variants import (
    DTYPES,
    NORMALIZE_BLOCK,
    NORMALIZE_WARPS,
    Norm,
    Tile,
    choose_tile,
)

MAX_HEAD_DIM = 128  # wider heads do not fit the shared memory of a program


def run_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    attributes: Attributes,
    *,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Attention output (B, T, H * d), enqueued on the current stream without a host copy.

    One or two kernels, see `Tile.normalizes_keys`.

    Args:
        q, k, v: (B, T, H, d) with equal strides and contiguous heads: tensors of their own, or the
            three parts of a packed one.
        cu_seqlens: (S + 1,) int32; not checked, since it lives on the device.
        scale_mul: (H,) float32, with `qk_l2_norm` only.
        attributes: of the op.
        out: contiguous, to write to instead of a new tensor.
        tile: instead of the one that `choose_tile` gives.

    Raises:
        ValueError: dtype, head dimension or strides are not supported.
    """
    B, T, H, d = q.shape
    dtype = str(q.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{OP_NAME}: dtype must be one of {DTYPES}, got {dtype}")
    if d > MAX_HEAD_DIM:
        raise ValueError(f"{OP_NAME}: head dimension must be at most {MAX_HEAD_DIM}, got {d}")
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
        raise ValueError(
            f"{OP_NAME}: q, k and v must have the same strides and contiguous heads, "
            f"got {q.stride()}, {k.stride()}, {v.stride()}"
        )
    out = q.new_empty((B, T, H * d)) if out is None else out
    num_blocks = len(cu_seqlens) - 1
    tile = tile or choose_tile(dtype, d, batch=B, length=T, heads=H, num_blocks=num_blocks)
    norm = tile.norm(attributes.qk_l2_norm)
    with torch.cuda.device(q.device):
        if norm is Norm.BEFOREHAND:
            normalized_k = k.new_empty((B, H, T, d))
            normalize_keys_kernel[(-(-T // NORMALIZE_BLOCK), H, B)](
                k,
                scale_mul,
                normalized_k,
                *k.stride()[:3],
                T,
                H,
                HEAD_DIM=d,
                BLOCK_N=NORMALIZE_BLOCK,
                num_warps=NORMALIZE_WARPS,
            )
            k = normalized_k
        block_sparse_attention_kernel[(-(-T // tile.block_m), H, B)](
            q,
            k,
            v,
            out,
            cu_seqlens,
            cu_seqlens if scale_mul is None else scale_mul,
            *q.stride()[:3],
            T,
            H,
            num_blocks,
            attributes.sm_scale,
            int(attributes.pattern == "block_causal"),
            HEAD_DIM=d,
            NORM=norm.value,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            maxnreg=tile.max_registers,
        )
    return out
