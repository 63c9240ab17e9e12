"""The decoder's kernels on PyTorch tensors of the current device, compiled at first use."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.decoder.kernel import (
    channel_sums_kernel,
    conv_kernel,
    normalize_kernel,
    statistics_kernel,
)
from plugins_trt.decoder.tiles import Tile

SUMS_PIXELS, SUMS_CHANNELS = 64, 64  # of one program
STATISTICS_TILES = 128  # read at once
NORMALIZE_BLOCK = 2048  # values of one program


def convolve(
    x_BhwC: Tensor,
    weights: Tensor,
    bias: Tensor,
    *,
    tile: Tile,
    scale_shift: Tensor | None = None,
    residual: Tensor | None = None,
    sums: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A convolution, with upsampling where the weights are folded; arguments as of `conv_kernel`.

    Raises:
        ValueError: the shape of `weights` fits neither.
    """
    B, h, w, C = x_BhwC.shape
    *phases, channels, side, _, depth = weights.shape
    if (phases, side) not in (([], 1), ([], 3), ([4], 2)) or depth != C:
        raise ValueError(
            f"weights must be (Cout, 1, 1, {C}), (Cout, 3, 3, {C}) or, folded for upsampling, "
            f"(4, Cout, 2, 2, {C}), got {tuple(weights.shape)}"
        )
    factor = 2 if phases else 1
    if out is None:
        out = x_BhwC.new_empty((B, factor * h, factor * w, channels))
    grid = (tile.count(h, w) * tile.channel_blocks(channels), factor * factor, B)
    conv_kernel[grid](
        x_BhwC,
        weights,
        bias,
        bias if scale_shift is None else scale_shift,
        out if residual is None else residual,
        out,
        bias if sums is None else sums,
        h,
        w,
        CIN=C,
        COUT=channels,
        SIDE=3 if phases else side,
        UPSAMPLES=bool(phases),
        ACTIVATES=scale_shift is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_SUMS=sums is not None,
        TILE_H=tile.height,
        TILE_W=tile.width,
        BLOCK_N=tile.channels,
        REST_N=tile.rest,
        BLOCK_K=tile.depth,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


def make_sums(x_BhwC: Tensor, weights: Tensor, tile: Tile) -> Tensor:
    """Uninitialised memory for the sums of `convolve` with these arguments."""
    B, h, w, _ = x_BhwC.shape
    phases = 4 if weights.dim() == 5 else 1
    shape = (B, phases * tile.count(h, w), 2, weights.shape[-4])
    return x_BhwC.new_empty(shape, dtype=torch.float32)


def channel_sums(x_BhwC: Tensor) -> Tensor:
    """Sums (B, tiles, 2, C) of a map, as convolutions leave them."""
    B, h, w, C = x_BhwC.shape
    tiles = -(-h * w // SUMS_PIXELS)
    sums = x_BhwC.new_empty((B, tiles, 2, C), dtype=torch.float32)
    channel_sums_kernel[(tiles, -(-C // SUMS_CHANNELS), B)](
        x_BhwC, sums, h * w, CHANNELS=C, BLOCK_P=SUMS_PIXELS, BLOCK_C=SUMS_CHANNELS
    )
    return sums


def group_norm(
    sums: Tensor, gain_C: Tensor, bias_C: Tensor, *, num_pixels: int, num_groups: int, eps: float
) -> Tensor:
    """Scale and shift (B, 2, C) of a group norm, from the sums of its input."""
    B, tiles, _, C = sums.shape
    scale_shift = sums.new_empty((B, 2, C))
    statistics_kernel[(num_groups, B)](
        sums,
        gain_C,
        bias_C,
        scale_shift,
        tiles,
        num_pixels,
        eps,
        CHANNELS=C,
        GROUPS=num_groups,
        BLOCK_T=STATISTICS_TILES,
    )
    return scale_shift


def normalize(
    x_BhwC: Tensor, scale_shift: Tensor, *, has_silu: bool, out: Tensor | None = None
) -> Tensor:
    """x * scale + shift, and its SiLU with `has_silu`."""
    B, h, w, C = x_BhwC.shape
    out = torch.empty_like(x_BhwC) if out is None else out
    normalize_kernel[(-(-h * w * C // NORMALIZE_BLOCK), B)](
        x_BhwC, scale_shift, out, h * w * C, CHANNELS=C, HAS_SILU=has_silu, BLOCK=NORMALIZE_BLOCK
    )
    return out
