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
def _outputs(
    x, ada, w_KO, row_M, is_row_M, width, ada_stride, scale_at, shift_at, eps,
    OUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Norm, modulation and product of some rows, in float32."""
    offs, offs_K = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    x_M = x + row_M.to(tl.int64)[:, None] * width
    is_value = is_row_M[:, None] & (offs < width)[None, :]
    value = tl.load(x_M + offs[None, :], mask=is_value, other=0.0).to(tl.float32)
    mean_M = tl.sum(value, axis=1) / width
    value = tl.where(is_value, value - mean_M[:, None], 0.0)
    inverse_M = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / width + eps)
    ada_M = ada + row_M.to(tl.int64)[:, None] * ada_stride
    acc_MO = tl.zeros([row_M.shape[0], OUT], tl.float32)
    for start in range(0, width, BLOCK_K):
        at_K = (start + offs_K)[None, :]
        x_MK = tl.load(x_M + at_K, mask=is_row_M[:, None], other=0.0).to(tl.float32)
        scale_MK = tl.load(ada_M + scale_at + at_K, mask=is_row_M[:, None], other=0.0)
        shift_MK = tl.load(ada_M + shift_at + at_K, mask=is_row_M[:, None], other=0.0)
        y_MK = (x_MK - mean_M[:, None]) * inverse_M[:, None]
        y_MK = y_MK * (1.0 + scale_MK.to(tl.float32)) + shift_MK.to(tl.float32)
        acc_MO = tl.dot(y_MK, tl.load(w_KO + start * OUT), acc=acc_MO, input_precision="tf32x3")
    return acc_MO


@triton.jit
def noise_kernel(
    x, ada, weights, bias, guidance, noise, variance,
    positions, width, ada_stride, scale_at, shift_at, eps,
    CHANNELS: tl.constexpr, IS_GUIDED: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """The last layer in float32: norm, modulation, linear layer; then guidance. Grid (blocks,).

    Args:
        x: (rows, width).
        ada: modulation vectors of the rows, `ada_stride` values apart, at `scale_at` and
            `shift_at`.
        weights: (width, CHANNELS) float32; with HAS_VARIANCE (width, 2 * CHANNELS).
        bias: of the weights' columns, float32.
        guidance: (1,) float32, read with IS_GUIDED: noise is unguided + guidance * (conditional -
            unguided).
        noise: (positions, CHANNELS) float32.
        variance: (positions, CHANNELS) float32, written with HAS_VARIANCE: of the condition.
        width: a multiple of BLOCK_K.
        BLOCK: power of two, at least `width`.
    """
    OUT: tl.constexpr = CHANNELS * (2 if HAS_VARIANCE else 1)
    offs_O = tl.arange(0, OUT)
    position_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row_M = position_M < positions
    w_KO = weights + tl.arange(0, BLOCK_K)[:, None] * OUT + offs_O[None, :]
    bias_O = tl.load(bias + offs_O)[None, :]
    _begin(OVERLAPS)
    _end(OVERLAPS)
    out_MO = bias_O + _outputs(
        x, ada, w_KO, position_M, is_row_M, width, ada_stride, scale_at, shift_at, eps,
        OUT, BLOCK, BLOCK_K,
    )  # fmt: skip
    place_MO = position_M[:, None] * CHANNELS + offs_O[None, :] % CHANNELS
    is_noise_MO = is_row_M[:, None] & (offs_O < CHANNELS)[None, :]
    if HAS_VARIANCE:
        is_variance_MO = is_row_M[:, None] & (offs_O >= CHANNELS)[None, :]
        tl.store(variance + place_MO, out_MO, mask=is_variance_MO)
    if IS_GUIDED:
        unguided_MO = bias_O + _outputs(
            x, ada, w_KO, positions + position_M, is_row_M, width, ada_stride, scale_at, shift_at,
            eps, OUT, BLOCK, BLOCK_K,
        )  # fmt: skip
        out_MO = unguided_MO + tl.load(guidance) * (out_MO - unguided_MO)
    tl.store(noise + place_MO, out_MO, mask=is_noise_MO)
