"""The transformer's kernels on PyTorch tensors of the current device, compiled at first use."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugins_trt.transformer import kernel
from plugins_trt.transformer.tiles import AttentionTile, Tile


def linear(
    x_Rk: Tensor,
    weights_kn: Tensor,
    bias_n: Tensor,
    out_Rn: Tensor,
    *,
    tile: Tile,
    length: int = 1,
    has_low: bool = False,
    epilogue: tl.constexpr = kernel.PLAIN,
    residual_Rn: Tensor | None = None,
    ada_NC: Tensor | None = None,
    gate_at: int = 0,
) -> Tensor:
    """A linear layer and what follows it, into `out_Rn`; arguments as of `linear_kernel`.

    Args:
        has_low: `x_Rk` and `weights_kn` have rounded values and what these lack.
        epilogue: what follows where no `residual_Rn` is given.
        residual_Rn: adds the gated result to this.
    """
    (R, k), n = x_Rk.shape, out_Rn.shape[1]
    depth = k // 2 if has_low else k
    epilogue = epilogue if residual_Rn is None else kernel.RESIDUAL
    ada = x_Rk if ada_NC is None else ada_NC
    tensors = (
        x_Rk,
        ada,
        weights_kn,
        bias_n,
        out_Rn if residual_Rn is None else residual_Rn,
        out_Rn,
    )
    sizes = (R, length, depth, n, 0 if ada_NC is None else ada_NC.stride(0), gate_at)
    constants = {**tile.constants, "EPILOGUE": epilogue.value, "HAS_LOW": has_low}
    settings = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "OVERLAPS": False}
    tiles = tile.count(R, n)
    kernel.linear_kernel[(tiles, tile.splits)](
        *tensors, *_make_shared(out_Rn, tile), *sizes, **constants, **settings
    )
    return out_Rn


def _make_shared(out_Rn: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Partial sums, which begin as NaN, and arrivals of `linear` with this tile."""
    (R, n), device = out_Rn.shape, out_Rn.device
    return (
        torch.full((tile.splits, R, n) if tile.splits > 1 else (0,), torch.nan, device=device),
        torch.zeros(tile.count(R, n), dtype=torch.int32, device=device),
    )


def normalize(
    x_RC: Tensor,
    ada_NC: Tensor,
    out_Rk: Tensor,
    *,
    length: int,
    scale_at: int,
    shift_at: int,
    eps: float = 1e-6,
) -> Tensor:
    """Layer norm and modulation, into `out_Rk`: (R, C), or (R, 2C) with what rounding lacks."""
    (R, C), block = x_RC.shape, max(1024, triton.next_power_of_2(x_RC.shape[1]))
    kernel.normalize_kernel[(R,)](
        x_RC,
        ada_NC,
        None,
        None,
        out_Rk,
        length,
        C,
        ada_NC.stride(0),
        scale_at,
        shift_at,
        eps,
        HAS_LOW=out_Rk.shape[1] == 2 * C,
        IS_AFFINE=False,
        IS_MODULATED=True,
        BLOCK=block,
        num_warps=block // 256,
        OVERLAPS=False,
    )
    return out_Rk


def attend(
    qkv_Nl3C: Tensor,
    scale_mul_H: Tensor,
    out_NlC: Tensor,
    *,
    tile: AttentionTile,
) -> Tensor:
    """Attention of unit-length queries and keys within each image, into `out_NlC`."""
    N, l, C = out_NlC.shape
    kernel.attention_kernel[(-(-l // tile.queries), len(scale_mul_H), N)](
        qkv_Nl3C,
        scale_mul_H,
        out_NlC,
        l,
        C,
        HAS_NORM=True,
        **tile.constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        OVERLAPS=False,
    )
    return out_NlC
