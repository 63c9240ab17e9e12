"""Convolutions, group norms and attention of the image decoder as Triton kernels.

Maps are (B, H, W, C), channels last, fp16 or bf16; sums are taken in float32. A convolution is a
matrix product over pixels, output channels, and taps times input channels. One program computes
TILE_H x TILE_W pixels of one image, so that the taps of a step read nearly the same memory; steps
go over all taps of BLOCK_K input channels before the next channels.

Many pixels on Hopper are `csrc/conv.cu`, whose arguments and results are those of `conv_kernel`.

160 output channels are no power of two, which the tiles of Triton must be: a program computes
BLOCK_N channels and REST_N further ones from the same input, 128 + 32.

A group norm reads its input once: convolutions leave the sums of what they write, by channel and
program, `statistics_kernel` turns these into a scale and a shift for each image and channel, and
`normalize_kernel` applies them.

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
    x, weights, bias, residual, out, sums, height, width,
    CIN: tl.constexpr, COUT: tl.constexpr, SIDE: tl.constexpr, UPSAMPLES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_SUMS: tl.constexpr,
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


@triton.jit
def attention_kernel(
    qkv, out, num_pixels, sm_scale,
    CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Attention of one head over all pixels. Grid (query blocks, CHANNELS // BLOCK_C, batch).

    A program computes BLOCK_C channels of BLOCK_Q pixels; programs that share pixels all compute
    their scores, which is little beside the convolutions.

    Args:
        qkv: (B, num_pixels, 3 * CHANNELS), queries before keys before values.
        out: (B, num_pixels, CHANNELS).
        sm_scale: of the scores.
        BLOCK_L: keys of one step.
        BLOCK_C: divides CHANNELS.
    """
    tl.static_assert(CHANNELS % BLOCK_C == 0)
    image = tl.program_id(2).to(tl.int64)
    offs_Q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_C = tl.arange(0, BLOCK_C)
    out_C = tl.program_id(1) * BLOCK_C + offs_C
    is_query_Q = offs_Q < num_pixels
    qkv += image * num_pixels * 3 * CHANNELS
    most_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total_Q = tl.zeros([BLOCK_Q], tl.float32)
    acc_QC = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
    for start in range(0, num_pixels, BLOCK_L):
        offs_L = start + tl.arange(0, BLOCK_L)
        is_key_L = offs_L < num_pixels
        scores_QL = tl.zeros([BLOCK_Q, BLOCK_L], tl.float32)
        for first in range(0, CHANNELS, BLOCK_C):
            q_QC = tl.load(
                qkv + first + offs_Q[:, None] * (3 * CHANNELS) + offs_C[None, :],
                mask=is_query_Q[:, None],
                other=0.0,
            )
            k_CL = tl.load(
                qkv + (CHANNELS + first) + offs_L[None, :] * (3 * CHANNELS) + offs_C[:, None],
                mask=is_key_L[None, :],
                other=0.0,
            )
            scores_QL = tl.dot(q_QC, k_CL, acc=scores_QL)
        scores_QL = tl.where(is_key_L[None, :], scores_QL * sm_scale, float("-inf"))
        new_most_Q = tl.maximum(most_Q, tl.max(scores_QL, axis=1))
        fade_Q = tl.exp(most_Q - new_most_Q)
        p_QL = tl.exp(scores_QL - new_most_Q[:, None])
        v_LC = tl.load(
            qkv + 2 * CHANNELS + offs_L[:, None] * (3 * CHANNELS) + out_C[None, :],
            mask=is_key_L[:, None],
            other=0.0,
        )
        total_Q = total_Q * fade_Q + tl.sum(p_QL, axis=1)
        acc_QC = tl.dot(p_QL.to(v_LC.dtype), v_LC, acc=acc_QC * fade_Q[:, None])
        most_Q = new_most_Q
    out += image * num_pixels * CHANNELS
    o_QC = (acc_QC / total_Q[:, None]).to(out.dtype.element_ty)
    place_QC = offs_Q[:, None] * CHANNELS + out_C[None, :]
    tl.store(out + place_QC, o_QC, mask=is_query_Q[:, None])


@triton.jit
def from_planes_kernel(
    planes, out, num_pixels, CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):
    """Channels last, in the type of `out`. Grid (ceil(num_pixels / BLOCK), batch).

    Args:
        planes: (B, CHANNELS, num_pixels) float32.
        out: (B, num_pixels, CHANNELS).
        PADDED: the next power of two of CHANNELS.
    """
    image = tl.program_id(1).to(tl.int64)
    offs_P, offs_C = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    is_value_PC = (offs_P < num_pixels)[:, None] & (offs_C < CHANNELS)[None, :]
    first = image * num_pixels * CHANNELS
    x_PC = tl.load(
        planes + first + offs_C[None, :] * num_pixels + offs_P[:, None], mask=is_value_PC, other=0.0
    )
    place_PC = offs_P[:, None] * CHANNELS + offs_C[None, :]
    tl.store(out + first + place_PC, x_PC.to(out.dtype.element_ty), mask=is_value_PC)


@triton.jit
def from_tokens_kernel(tokens, out, num_values, factor, BLOCK: tl.constexpr):
    """Tokens times a factor, in the type of `out`. Grid (ceil(num_values / BLOCK),).

    Args:
        tokens: (num_values,) float32.
        out: (num_values,).
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_value = offs < num_values
    value = tl.load(tokens + offs, mask=is_value, other=0.0) * factor
    tl.store(out + offs, value.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def to_image_kernel(x, image, num_pixels, CLAMPS: tl.constexpr, BLOCK: tl.constexpr):
    """Pixels in [-1, 1] as planes in [0, 1]. Grid (ceil(num_pixels / BLOCK), batch).

    Args:
        x: (B, num_pixels, 3).
        image: (B, 3, num_pixels) float32.
        CLAMPS: values beyond -1 and 1 become these.
    """
    first = tl.program_id(1).to(tl.int64) * num_pixels * 3
    offs_P = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pixel_P = offs_P < num_pixels
    for channel in tl.static_range(3):
        x_P = tl.load(x + first + offs_P * 3 + channel, mask=is_pixel_P, other=0.0).to(tl.float32)
        if CLAMPS:
            x_P = tl.minimum(tl.maximum(x_P, -1.0), 1.0)
        y_P = x_P / 2 + 0.5
        tl.store(image + first + channel * num_pixels + offs_P, y_P, mask=is_pixel_P)
