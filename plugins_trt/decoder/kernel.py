"""Convolutions and group norms of the image decoder as Triton kernels.

Maps are (B, H, W, C), channels last, fp16 or bf16; sums are taken in float32. A convolution is a
matrix product over pixels, output channels, and taps times input channels. One program computes
TILE_H x TILE_W pixels of one image, so that the taps of a step read nearly the same memory; steps
go over all taps of BLOCK_K input channels before the next channels.

160 output channels are no power of two, which the tiles of Triton must be: a program computes
BLOCK_N channels and REST_N further ones from the same input, 128 + 32.

A group norm costs one small kernel: convolutions leave the sums of what they write, by channel and
program, `statistics_kernel` turns these into a scale and a shift for each image and channel, and
the next convolution applies them where it loads (ACTIVATES), or `normalize_kernel` does beforehand.

Nearest-neighbour upsampling before a convolution copies every pixel to four; of the nine taps, at
most four read different pixels. So the output pixels of each parity (phase) have 2 x 2 taps of
their own, with sums of the nine weights: `weights.fold_upsampling`. That is 4/9 of the operations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _write(
    acc_MN, bias, residual, out, sums, pixel_M, is_pixel_M, offs_N,
    COUT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SUMS: tl.constexpr,
):  # fmt: skip
    """Rounds and stores some channels of the tile, and their sums over its pixels."""
    is_channel_N = offs_N < COUT
    is_value_MN = is_pixel_M[:, None] & is_channel_N[None, :]
    place_MN = pixel_M[:, None] * COUT + offs_N[None, :]
    acc_MN += tl.load(bias + offs_N, mask=is_channel_N, other=0.0)[None, :]
    if HAS_RESIDUAL:
        acc_MN += tl.load(residual + place_MN, mask=is_value_MN, other=0.0).to(tl.float32)
    y_MN = acc_MN.to(out.dtype.element_ty)
    tl.store(out + place_MN, y_MN, mask=is_value_MN)
    if HAS_SUMS:
        y_MN = tl.where(is_pixel_M[:, None], y_MN.to(tl.float32), 0.0)
        tl.store(sums + offs_N, tl.sum(y_MN, axis=0), mask=is_channel_N)
        tl.store(sums + COUT + offs_N, tl.sum(y_MN * y_MN, axis=0), mask=is_channel_N)


@triton.jit
def conv_kernel(
    x, weights, bias, scale_shift, residual, out, sums, height, width,
    CIN: tl.constexpr, COUT: tl.constexpr, SIDE: tl.constexpr, UPSAMPLES: tl.constexpr,
    ACTIVATES: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SUMS: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, REST_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolution with stride 1 that keeps the size. Grid (tiles * channel blocks, phases, batch).

    The first axis has all blocks of BLOCK_N + REST_N channels of a tile before the next tile; there
    are four phases with UPSAMPLES, else one.

    Args:
        x: (B, height, width, CIN).
        weights: (COUT, SIDE, SIDE, CIN), of x's type; (4, COUT, 2, 2, CIN) with UPSAMPLES.
        bias: (COUT,) float32.
        scale_shift: (B, 2, CIN) float32, read with ACTIVATES: the input is silu(x * scale + shift),
            and zero outside the image.
        residual: of out's shape, added with HAS_RESIDUAL; may not be `out`.
        out: (B, height, width, COUT), twice as high and wide with UPSAMPLES.
        sums: (B, phases * tiles, 2, COUT) float32, written with HAS_SUMS: sums and sums of squares
            of the values of `out`.
        SIDE: 1 or 3; 3 with UPSAMPLES.
        REST_N: further channels of a program, 0 or a power of two.
    """
    BLOCK_M: tl.constexpr = TILE_H * TILE_W
    TAPS_SIDE: tl.constexpr = 2 if UPSAMPLES else SIDE
    TAPS: tl.constexpr = TAPS_SIDE * TAPS_SIDE
    TILE_N: tl.constexpr = BLOCK_N + REST_N
    NUM_N: tl.constexpr = (COUT + TILE_N - 1) // TILE_N
    STEPS: tl.constexpr = (CIN + BLOCK_K - 1) // BLOCK_K * TAPS
    tile, first_n = tl.program_id(0) // NUM_N, tl.program_id(0) % NUM_N * TILE_N
    phase, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_tiles = tl.num_programs(0) // NUM_N
    tiles_x = tl.cdiv(width, TILE_W)
    offs_M, offs_K = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    y_M = tile // tiles_x * TILE_H + offs_M // TILE_W
    x_M = tile % tiles_x * TILE_W + offs_M % TILE_W

    # the first tap reads the pixel that lies this far below and to the right
    if UPSAMPLES:
        top, left = phase // 2 - 1, phase % 2 - 1
    else:
        top, left = -(SIDE // 2), -(SIDE // 2)
    inside_M = tl.zeros([BLOCK_M], tl.int32)  # one bit per tap
    for bit in tl.static_range(TAPS):
        row_M, column_M = y_M + top + bit // TAPS_SIDE, x_M + left + bit % TAPS_SIDE
        is_inside_M = (row_M >= 0) & (row_M < height) & (column_M >= 0) & (column_M < width)
        inside_M |= is_inside_M.to(tl.int32) << bit

    x += image * height * width * CIN
    scale_shift += image * 2 * CIN
    weights += phase * COUT * TAPS * CIN
    offs_N = first_n + tl.arange(0, BLOCK_N)
    x_offs_MK = ((y_M * width + x_M) * CIN)[:, None] + offs_K[None, :]
    offs_KN = offs_K[:, None] + (offs_N * (TAPS * CIN))[None, :]
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if REST_N:
        rest_N = first_n + BLOCK_N + tl.arange(0, REST_N)
        rest_offs_KN = offs_K[:, None] + (rest_N * (TAPS * CIN))[None, :]
        rest_MN = tl.zeros([BLOCK_M, REST_N], tl.float32)
    for step in range(STEPS):
        tap, first_k = step % TAPS, step // TAPS * BLOCK_K
        shift = (top + tap // TAPS_SIDE) * width + left + tap % TAPS_SIDE
        is_input_MK = ((inside_M >> tap) & 1 != 0)[:, None]
        is_weight_KN = (offs_N < COUT)[None, :]
        if CIN % BLOCK_K:
            is_channel_K = first_k + offs_K < CIN
            is_input_MK = is_input_MK & is_channel_K[None, :]
            is_weight_KN = is_weight_KN & is_channel_K[:, None]
        x_MK = tl.load(x + (shift * CIN + first_k) + x_offs_MK, mask=is_input_MK, other=0.0)
        if ACTIVATES:
            offs = first_k + offs_K
            if CIN % BLOCK_K:
                scale_K = tl.load(scale_shift + offs, mask=offs < CIN, other=0.0)
                shift_K = tl.load(scale_shift + CIN + offs, mask=offs < CIN, other=0.0)
            else:
                scale_K = tl.load(scale_shift + offs)
                shift_K = tl.load(scale_shift + CIN + offs)
            active_MK = _silu(x_MK.to(tl.float32) * scale_K[None, :] + shift_K[None, :])
            x_MK = tl.where(is_input_MK, active_MK, 0.0).to(x_MK.dtype)
        place = tap * CIN + first_k
        if COUT % TILE_N == 0 and CIN % BLOCK_K == 0:
            w_KN = tl.load(weights + place + offs_KN)
        else:
            w_KN = tl.load(weights + place + offs_KN, mask=is_weight_KN, other=0.0)
        acc_MN = tl.dot(x_MK, w_KN, acc=acc_MN)
        if REST_N:
            if COUT % TILE_N == 0 and CIN % BLOCK_K == 0:
                w_KN = tl.load(weights + place + rest_offs_KN)
            else:
                is_weight_KN = (rest_N < COUT)[None, :] & (first_k + offs_K < CIN)[:, None]
                w_KN = tl.load(weights + place + rest_offs_KN, mask=is_weight_KN, other=0.0)
            rest_MN = tl.dot(x_MK, w_KN, acc=rest_MN)

    is_pixel_M = (y_M < height) & (x_M < width)
    if UPSAMPLES:
        pixel_M = (2 * y_M + phase // 2) * (2 * width) + 2 * x_M + phase % 2
        first = image * 4 * height * width * COUT
    else:
        pixel_M = y_M * width + x_M
        first = image * height * width * COUT
    residual, out = residual + first, out + first
    sums += ((image * tl.num_programs(1) + phase) * num_tiles + tile) * 2 * COUT
    _write(
        acc_MN, bias, residual, out, sums, pixel_M, is_pixel_M, offs_N,
        COUT, HAS_RESIDUAL, HAS_SUMS,
    )  # fmt: skip
    if REST_N:
        _write(
            rest_MN, bias, residual, out, sums, pixel_M, is_pixel_M, rest_N,
            COUT, HAS_RESIDUAL, HAS_SUMS,
        )  # fmt: skip


@triton.jit
def channel_sums_kernel(
    x, sums, num_pixels, CHANNELS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sums of a map that no convolution wrote. Grid (tiles, ceil(CHANNELS / BLOCK_C), batch).

    Args:
        x: (B, num_pixels, CHANNELS).
        sums: (B, tiles, 2, CHANNELS) float32, written, as by `conv_kernel`; a tile is BLOCK_P
            pixels.
    """
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    offs_P = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel_C = offs_C < CHANNELS
    x_PC = tl.load(
        x + image * num_pixels * CHANNELS + offs_P[:, None] * CHANNELS + offs_C[None, :],
        mask=(offs_P < num_pixels)[:, None] & is_channel_C[None, :],
        other=0.0,
    ).to(tl.float32)
    sums += (image * tl.num_programs(0) + tile) * 2 * CHANNELS
    tl.store(sums + offs_C, tl.sum(x_PC, axis=0), mask=is_channel_C)
    tl.store(sums + CHANNELS + offs_C, tl.sum(x_PC * x_PC, axis=0), mask=is_channel_C)


@triton.jit
def statistics_kernel(
    sums, gain, bias, scale_shift, num_tiles, num_pixels, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Group norm as a scale and a shift of every channel. Grid (GROUPS, batch).

    Adds in float64: the variance is a difference of sums.

    Args:
        sums: (B, num_tiles, 2, CHANNELS) float32, of all `num_pixels` pixels.
        gain, bias: (CHANNELS,) float32, of the norm.
        scale_shift: (B, 2, CHANNELS) float32, written.
        eps: added to the variance.
        BLOCK_T: tiles read at once.
    """
    SIZE: tl.constexpr = CHANNELS // GROUPS
    PADDED: tl.constexpr = triton.next_power_of_2(SIZE)
    image = tl.program_id(1).to(tl.int64)
    offs_C, offs_T = tl.arange(0, PADDED), tl.arange(0, BLOCK_T)
    channel_C = tl.program_id(0) * SIZE + offs_C
    is_channel_C = offs_C < SIZE
    sums += image * num_tiles * 2 * CHANNELS
    total_TC = tl.zeros([BLOCK_T, PADDED], tl.float64)
    square_TC = tl.zeros([BLOCK_T, PADDED], tl.float64)
    for start in range(0, num_tiles, BLOCK_T):
        place_TC = (start + offs_T)[:, None] * (2 * CHANNELS) + channel_C[None, :]
        is_sum_TC = (start + offs_T < num_tiles)[:, None] & is_channel_C[None, :]
        total_TC += tl.load(sums + place_TC, mask=is_sum_TC, other=0.0).to(tl.float64)
        square_TC += tl.load(sums + CHANNELS + place_TC, mask=is_sum_TC, other=0.0).to(tl.float64)
    count = num_pixels.to(tl.float64) * SIZE
    mean = tl.sum(tl.sum(total_TC, axis=0), axis=0) / count
    square = tl.sum(tl.sum(square_TC, axis=0), axis=0) / count
    deviation = tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    gain_C = tl.load(gain + channel_C, mask=is_channel_C, other=0.0)
    bias_C = tl.load(bias + channel_C, mask=is_channel_C, other=0.0)
    scale_C = gain_C / deviation
    scale_shift += image * 2 * CHANNELS
    tl.store(scale_shift + channel_C, scale_C.to(tl.float32), mask=is_channel_C)
    shift_C = (bias_C - mean * scale_C).to(tl.float32)
    tl.store(scale_shift + CHANNELS + channel_C, shift_C, mask=is_channel_C)


@triton.jit
def normalize_kernel(
    x, scale_shift, out, num_values,
    CHANNELS: tl.constexpr, HAS_SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x * scale + shift, and its SiLU with HAS_SILU. Grid (ceil(num_values / BLOCK), batch).

    Args:
        x, out: (B, num_values), pixels of CHANNELS channels; may be the same.
        scale_shift: (B, 2, CHANNELS) float32.
    """
    image = tl.program_id(1).to(tl.int64)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_value = offs < num_values
    scale_shift += image * 2 * CHANNELS
    value = tl.load(x + image * num_values + offs, mask=is_value, other=0.0).to(tl.float32)
    scale = tl.load(scale_shift + offs % CHANNELS)
    shift = tl.load(scale_shift + CHANNELS + offs % CHANNELS)
    value = value * scale + shift
    if HAS_SILU:
        value = _silu(value)
    tl.store(out + image * num_values + offs, value.to(out.dtype.element_ty), mask=is_value)
