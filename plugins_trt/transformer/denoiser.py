"""The ends of Hi-MAR's denoisers as Triton kernels: embedding, modulation input, predicted noise.

What lies between them is in `kernel.py`. Positions are the tokens of all images, image after image;
rows are the positions of both halves of the guided batch, the conditional half first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugins_trt.transformer.kernel import _begin, _end


@triton.jit
def embed_kernel(
    x, weights, bias, pos, out, rows, positions, length, width,
    CHANNELS: tl.constexpr, HAS_POS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Linear layer of the state. Grid (column blocks, row blocks).

    Args:
        x: (positions, CHANNELS) float32, the state of both halves; rounded to fp16.
        weights: (CHANNELS, width).
        bias: (width,).
        pos: (length, width) with HAS_POS, added at each position of an image.
        out: (rows, width).
    """
    offs_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_column_N, is_row_M = offs_N < width, row_M < rows
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc_MN += tl.load(bias + offs_N, mask=is_column_N, other=0.0).to(tl.float32)[None, :]
    is_value_MN = is_row_M[:, None] & is_column_N[None, :]
    position_M = row_M % positions
    if HAS_POS:
        pos_MN = pos + (position_M % length)[:, None] * width + offs_N[None, :]
        acc_MN += tl.load(pos_MN, mask=is_value_MN, other=0.0).to(tl.float32)
    _begin(OVERLAPS)
    _end(OVERLAPS)
    for channel in tl.static_range(CHANNELS):
        x_M = tl.load(x + position_M * CHANNELS + channel, mask=is_row_M, other=0.0)
        w_N = tl.load(weights + channel * width + offs_N, mask=is_column_N, other=0.0)
        acc_MN += x_M.to(tl.float16).to(tl.float32)[:, None] * w_N.to(tl.float32)[None, :]
    place_MN = out + row_M.to(tl.int64)[:, None] * width + offs_N[None, :]
    tl.store(place_MN, acc_MN.to(out.dtype.element_ty), mask=is_value_MN)


@triton.jit
def activate_kernel(
    cond, times, timestep, out, count, width, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr
):
    """SiLU of condition and time, which modulations are computed from. Grid (blocks, time steps).

    Args:
        cond: (count,) values, rows of `width`.
        times: (1000, width), embedded time steps.
        timestep: (time steps,) int32.
        out: (time steps, count).
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_value = offs < count
    _begin(OVERLAPS)
    _end(OVERLAPS)
    time = tl.load(timestep + tl.program_id(1)) * width + offs % width
    y = tl.load(cond + offs, mask=is_value, other=0.0).to(tl.float32)
    y += tl.load(times + time, mask=is_value, other=0.0).to(tl.float32)
    out += tl.program_id(1).to(tl.int64) * count
    tl.store(out + offs, (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=is_value)


@triton.jit
def noise_kernel(
    x, ada, weights, bias, guidance, noise, variance,
    positions, width, ada_stride, scale_at, shift_at, eps,
    CHANNELS: tl.constexpr, HALVES: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """The last layer of a position in float32: norm, modulation, linear layer; then guidance.

    Grid (positions,).

    Args:
        x: (rows, width), rows being HALVES times positions.
        ada: modulation vectors of the rows, `ada_stride` values apart, at `scale_at` and
            `shift_at`.
        weights: (CHANNELS, width) float32; with HAS_VARIANCE (2 * CHANNELS, width).
        bias: of the weights' rows, float32.
        guidance: (1,) float32, read if HALVES is 2: noise is unguided + guidance * (conditional -
            unguided).
        noise: (positions, CHANNELS) float32.
        variance: (positions, CHANNELS) float32, written with HAS_VARIANCE: of the condition.
        BLOCK: power of two, at least `width`.
        BLOCK_K: values of a row that are multiplied at once; divides BLOCK.
    """
    OUT: tl.constexpr = CHANNELS * (2 if HAS_VARIANCE else 1)
    position = tl.program_id(0).to(tl.int64)
    offs_H, offs_O, offs_K = tl.arange(0, HALVES), tl.arange(0, OUT), tl.arange(0, BLOCK_K)
    row_H1 = (position + offs_H * positions)[:, None]
    bias_O = tl.load(bias + offs_O)
    _begin(OVERLAPS)
    _end(OVERLAPS)
    at_1W = tl.arange(0, BLOCK)[None, :]
    x_HW = tl.load(x + row_H1 * width + at_1W, mask=at_1W < width, other=0.0).to(tl.float32)
    mean_H1 = (tl.sum(x_HW, axis=1) / width)[:, None]
    x_HW = tl.where(at_1W < width, x_HW - mean_H1, 0.0)
    inverse_H1 = (1.0 / tl.sqrt(tl.sum(x_HW * x_HW, axis=1) / width + eps))[:, None]
    acc_HOK = tl.zeros([HALVES, OUT, BLOCK_K], tl.float32)
    for start in tl.static_range(0, BLOCK, BLOCK_K):
        at_1K = (start + offs_K)[None, :]
        is_value_1K = at_1K < width
        w_OK = tl.load(weights + offs_O[:, None] * width + at_1K, mask=is_value_1K, other=0.0)
        y_HK = tl.load(x + row_H1 * width + at_1K, mask=is_value_1K, other=0.0).to(tl.float32)
        ada_HK = ada + row_H1 * ada_stride + at_1K
        scale_HK = tl.load(ada_HK + scale_at, mask=is_value_1K, other=0.0).to(tl.float32)
        shift_HK = tl.load(ada_HK + shift_at, mask=is_value_1K, other=0.0).to(tl.float32)
        y_HK = (y_HK - mean_H1) * inverse_H1 * (1.0 + scale_HK) + shift_HK
        acc_HOK += w_OK[None, :, :] * y_HK[:, None, :]
    out_HO = tl.sum(acc_HOK, axis=2) + bias_O[None, :]
    is_cond_H1 = (offs_H == 0)[:, None]
    out_O = tl.sum(tl.where(is_cond_H1, out_HO, 0.0), axis=0)
    place_O = position * CHANNELS + offs_O % CHANNELS
    if HAS_VARIANCE:
        tl.store(variance + place_O, out_O, mask=offs_O >= CHANNELS)
    if HALVES == 2:
        unguided_O = tl.sum(tl.where(is_cond_H1, 0.0, out_HO), axis=0)
        out_O = unguided_O + tl.load(guidance) * (out_O - unguided_O)
    tl.store(noise + place_O, out_O, mask=offs_O < CHANNELS)
