"""The decoder's kernels on PyTorch tensors of the current device, compiled at first use."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.decoder import kernel
from plugins_trt.decoder.tiles import (
    ATTENTION_BLOCKS,
    NORMALIZE_BLOCK,
    PIXELS_BLOCK,
    STATISTICS_TILES,
    Tile,
)


def convolve(
    x_BhwC: Tensor,
    weights: Tensor,
    bias: Tensor,
    *,
    tile: Tile,
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
    kernel.conv_kernel[grid](
        x_BhwC,
        weights,
        bias,
        out if residual is None else residual,
        out,
        bias if sums is None else sums,
        h,
        w,
        CIN=C,
        COUT=channels,
        SIDE=3 if phases else side,
        UPSAMPLES=bool(phases),
        HAS_RESIDUAL=residual is not None,
        HAS_SUMS=sums is not None,
        **tile.constants,
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


def group_norm(
    sums: Tensor, gain_C: Tensor, bias_C: Tensor, *, num_pixels: int, num_groups: int, eps: float
) -> Tensor:
    """Scale and shift (B, 2, C) of a group norm, from the sums of its input."""
    B, tiles, _, C = sums.shape
    scale_shift = sums.new_empty((B, 2, C))
    kernel.statistics_kernel[(num_groups, B)](
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
    kernel.normalize_kernel[(-(-h * w * C // NORMALIZE_BLOCK), B)](
        x_BhwC, scale_shift, out, h * w * C, CHANNELS=C, HAS_SILU=has_silu, BLOCK=NORMALIZE_BLOCK
    )
    return out


def attend(qkv_Bl3C: Tensor, out_BlC: Tensor) -> Tensor:
    """Attention of one head with scale C ** -0.5, into `out_BlC`."""
    B, l, C = out_BlC.shape
    block_q, _, block_c = ATTENTION_BLOCKS.values()
    kernel.attention_kernel[(-(-l // block_q), C // block_c, B)](
        qkv_Bl3C, out_BlC, l, C**-0.5, CHANNELS=C, **ATTENTION_BLOCKS
    )
    return out_BlC


def from_planes(planes_BCp: Tensor, out_BpC: Tensor) -> Tensor:
    """Channels last, into `out_BpC` and in its type."""
    B, C, pixels = planes_BCp.shape
    kernel.from_planes_kernel[(-(-pixels // PIXELS_BLOCK), B)](
        planes_BCp,
        out_BpC,
        pixels,
        CHANNELS=C,
        PADDED=1 << (C - 1).bit_length(),
        BLOCK=PIXELS_BLOCK,
    )
    return out_BpC


def from_tokens(tokens_BpC: Tensor, out_BpC: Tensor, *, factor: float) -> Tensor:
    """Tokens times a factor, into `out_BpC` and in its type."""
    values = tokens_BpC.numel()
    kernel.from_tokens_kernel[(-(-values // NORMALIZE_BLOCK),)](
        tokens_BpC, out_BpC, values, factor, BLOCK=NORMALIZE_BLOCK
    )
    return out_BpC


def to_image(x_Bp3: Tensor, image_B3p: Tensor, *, clamps: bool = True) -> Tensor:
    """Moved from [-1, 1] to [0, 1], into `image_B3p`; values beyond these are clamped or kept."""
    B, pixels, _ = x_Bp3.shape
    kernel.to_image_kernel[(-(-pixels // PIXELS_BLOCK), B)](
        x_Bp3, image_B3p, pixels, CLAMPS=clamps, BLOCK=PIXELS_BLOCK
    )
    return image_B3p
