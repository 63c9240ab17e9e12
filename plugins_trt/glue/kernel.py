"""What lies between the transformer passes of HMAR as Triton kernels.

Conditioning: `class_kernel`, `modulation_kernel`, `shared_modulation_kernel`. Input of a pass:
`first_kernel`, `embed_kernel`. Quantizer, in float32: `enlarge_kernel` looks tokens up and enlarges
their map, `phi_kernel` convolves it and adds it to the reconstruction, `reduce_kernel` averages
that to the grid of the next pass. They round where the graphs of `export.modules` do: activations
to the type of the weights, the quantizer not at all.
"""

from __future__ import annotations

import triton
import triton.language as tl

PHI_RATIO = tl.constexpr(0.5)  # share of the convolution in phi


@triton.jit
def class_kernel(labels, class_emb, cond, act, width, BLOCK: tl.constexpr):
    """Class embeddings and their SiLU. Grid (blocks of columns, rows).

    Args:
        labels: (rows,) int32.
        class_emb: (classes + 1, width).
        cond, act: (rows, width).
    """
    row, offs = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_column = offs < width
    label = tl.load(labels + row).to(tl.int64)
    x = tl.load(class_emb + label * width + offs, mask=is_column, other=0.0)
    tl.store(cond + row * width + offs, x, mask=is_column)
    x = x.to(tl.float32)
    y = x / (1.0 + tl.exp(-x))
    tl.store(act + row * width + offs, y.to(act.dtype.element_ty), mask=is_column)


@triton.jit
def modulation_kernel(
    act, weights, biases, out, rows, depth, width, layer_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Modulation vectors of several layers. Grid (blocks of columns, layers, blocks of rows).

    Args:
        act: (rows, depth).
        weights: of layer i at `weights + i * layer_stride`, (depth, width).
        biases: likewise, (width,).
        out: (rows, layers, width).
        depth, width: multiples of BLOCK_K and BLOCK_N.
        layer_stride: values from one layer's weights and biases to the next one's.
    """
    layer, num_layers = tl.program_id(1), tl.num_programs(1)
    offs_M = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_N, offs_K = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    is_row_M = offs_M < rows
    weights += layer * layer_stride.to(tl.int64)
    biases += layer * layer_stride.to(tl.int64)
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, depth, BLOCK_K):
        act_MK = tl.load(
            act + offs_M[:, None] * depth + (first + offs_K)[None, :],
            mask=is_row_M[:, None],
            other=0.0,
        )
        w_KN = tl.load(weights + (first + offs_K).to(tl.int64)[:, None] * width + offs_N[None, :])
        acc_MN = tl.dot(act_MK, w_KN, acc_MN)
    # the graphs round the product before they add the bias
    y_MN = acc_MN.to(out.dtype.element_ty) + tl.load(biases + offs_N)[None, :]
    place_MN = (offs_M.to(tl.int64) * num_layers + layer)[:, None] * width + offs_N[None, :]
    tl.store(out + place_MN, y_MN, mask=is_row_M[:, None])


@triton.jit
def shared_modulation_kernel(shared, own, out, width, layer_stride, BLOCK: tl.constexpr):
    """Adds each layer's own modulation to the shared one. Grid (blocks of columns, layers, rows).

    Args:
        shared: (rows, width).
        own: of layer i at `own + i * layer_stride`, (width,).
        out: (rows, layers, width).
    """
    layer, num_layers, row = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_column = offs < width
    own += layer * layer_stride.to(tl.int64)
    x = tl.load(shared + row.to(tl.int64) * width + offs, mask=is_column, other=0.0)
    x += tl.load(own + offs, mask=is_column, other=0.0)
    tl.store(out + (row.to(tl.int64) * num_layers + layer) * width + offs, x, mask=is_column)


@triton.jit
def first_kernel(cond, pos, out, width, BLOCK: tl.constexpr):
    """Input of the first scale: condition and position. Grid (blocks of columns, rows).

    Args:
        cond, out: (rows, width).
        pos: (positions, width), of which the first is read.
    """
    row, offs = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_column = offs < width
    x = tl.load(cond + row * width + offs, mask=is_column, other=0.0)
    x += tl.load(pos + offs, mask=is_column, other=0.0)
    tl.store(out + row * width + offs, x, mask=is_column)


@triton.jit
def embed_kernel(
    x, h, token_mask, word_embed, mask_embed, pos, positions, out, rows, length, width,
    HAS_MASK: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Input of a pass: embedded maps and positions. Grid (blocks of columns, blocks of rows).

    Args:
        x: maps, (rows, CHANNELS) float32, `length` rows of each image.
        h, token_mask: this scale's own contribution, (rows, CHANNELS) float32, and which of them
            `mask_embed` replaces, (rows,) boolean; read with HAS_MASK.
        word_embed: (CHANNELS, width).
        mask_embed: (width,).
        pos: (positions, width), of which row `positions[i]` belongs to token i of an image.
        out: (rows, width).
        width: a multiple of BLOCK_N.
    """
    offs_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_N, offs_C = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, CHANNELS)
    is_row_M = offs_M < rows
    place_MC = offs_M[:, None] * CHANNELS + offs_C[None, :]
    w_CN = tl.load(word_embed + offs_C[:, None] * width + offs_N[None, :])
    x_MC = tl.load(x + place_MC, mask=is_row_M[:, None], other=0.0).to(w_CN.dtype)
    y_MN = tl.dot(x_MC, w_CN).to(w_CN.dtype)
    if HAS_MASK:
        h_MC = tl.load(h + place_MC, mask=is_row_M[:, None], other=0.0).to(w_CN.dtype)
        is_masked_M = tl.load(token_mask + offs_M, mask=is_row_M, other=0) != 0
        masked_N = tl.load(mask_embed + offs_N)
        y_MN += tl.where(is_masked_M[:, None], masked_N[None, :], tl.dot(h_MC, w_CN).to(w_CN.dtype))
    position_M = tl.load(positions + offs_M % length, mask=is_row_M, other=0)
    pos_MN = pos + position_M.to(tl.int64)[:, None] * width + offs_N[None, :]
    y_MN += tl.load(pos_MN, mask=is_row_M[:, None], other=0.0)
    place_MN = offs_M.to(tl.int64)[:, None] * width + offs_N[None, :]
    tl.store(out + place_MN, y_MN, mask=is_row_M[:, None])


@triton.jit
def enlarge_kernel(
    tokens, codebook, taps, shares, out, side, pn, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Codebook rows of a token map, enlarged along both axes. Grid (blocks of pixels, images).

    Args:
        tokens: (B, pn, pn) int32.
        codebook: (vocabulary, CHANNELS) float32.
        taps, shares: (side, 4) int32 and float32: which cells of a row enter a pixel of an enlarged
            row, and how much of each.
        out: (B, side, side, CHANNELS) float32.
    """
    pixel_M = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, offs_C = tl.program_id(1).to(tl.int64), tl.arange(0, CHANNELS)
    is_pixel_M = pixel_M < side * side
    y_M, x_M = pixel_M // side, pixel_M % side
    tokens += image * pn * pn
    acc_MC = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for i in tl.static_range(4):
        row_M = tl.load(taps + y_M * 4 + i, mask=is_pixel_M, other=0)
        row_MC = tl.zeros([BLOCK, CHANNELS], tl.float32)
        for j in tl.static_range(4):
            column_M = tl.load(taps + x_M * 4 + j, mask=is_pixel_M, other=0)
            share_M = tl.load(shares + x_M * 4 + j, mask=is_pixel_M, other=0.0)
            token_M = tl.load(tokens + row_M * pn + column_M, mask=is_pixel_M, other=0)
            place_MC = token_M.to(tl.int64)[:, None] * CHANNELS + offs_C[None, :]
            row_MC += share_M[:, None] * tl.load(codebook + place_MC)
        acc_MC += tl.load(shares + y_M * 4 + i, mask=is_pixel_M, other=0.0)[:, None] * row_MC
    place_MC = (image * side * side + pixel_M)[:, None] * CHANNELS + offs_C[None, :]
    tl.store(out + place_MC, acc_MC, mask=is_pixel_M[:, None])


@triton.jit
def phi_kernel(
    h, weights, bias, f_hat, out, side,
    ADDS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """phi of a map, and the sum with the reconstruction. Grid (blocks of pixels, images).

    Args:
        h: (B, side, side, CHANNELS) float32.
        weights: (3, 3, CHANNELS in, CHANNELS out) float32.
        bias: (CHANNELS,) float32.
        f_hat: (B, CHANNELS, side, side) float32, added with ADDS.
        out: (B, CHANNELS, side, side) float32.
    """
    pixel_M = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, offs_C = tl.program_id(1).to(tl.int64), tl.arange(0, CHANNELS)
    is_pixel_M = pixel_M < side * side
    y_M, x_M = pixel_M // side, pixel_M % side
    h += image * side * side * CHANNELS
    acc_MC = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for tap in tl.static_range(9):
        row_M, column_M = y_M + tap // 3 - 1, x_M + tap % 3 - 1
        is_inside_M = (row_M >= 0) & (row_M < side) & (column_M >= 0) & (column_M < side)
        place_MC = (row_M * side + column_M)[:, None] * CHANNELS + offs_C[None, :]
        h_MC = tl.load(h + place_MC, mask=(is_inside_M & is_pixel_M)[:, None], other=0.0)
        w_place_CC = (tap * CHANNELS + offs_C)[:, None] * CHANNELS + offs_C[None, :]
        acc_MC = tl.dot(h_MC, tl.load(weights + w_place_CC), acc_MC, input_precision="ieee")
    acc_MC += tl.load(bias + offs_C)[None, :]
    place_MC = pixel_M[:, None] * CHANNELS + offs_C[None, :]
    own_MC = tl.load(h + place_MC, mask=is_pixel_M[:, None], other=0.0)
    y_MC = own_MC * (1.0 - PHI_RATIO) + acc_MC * PHI_RATIO
    place_MC = (image * CHANNELS + offs_C)[None, :] * (side * side) + pixel_M[:, None]
    if ADDS:
        y_MC += tl.load(f_hat + place_MC, mask=is_pixel_M[:, None], other=0.0)
    tl.store(out + place_MC, y_MC, mask=is_pixel_M[:, None])


@triton.jit
def reduce_kernel(planes, out, side, reduced, CHANNELS: tl.constexpr, WINDOW: tl.constexpr):
    """Area averages of a map. Grid (cells, images).

    Cell i of an axis averages positions floor(i * side / reduced) to
    ceil((i + 1) * side / reduced) - 1.

    Args:
        planes: (B, CHANNELS, side, side) float32.
        out: (B, reduced * reduced, CHANNELS) float32.
        WINDOW: no cell has more positions along an axis.
    """
    cell, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j = cell // reduced, cell % reduced
    top, bottom = i * side // reduced, tl.cdiv((i + 1) * side, reduced)
    left, right = j * side // reduced, tl.cdiv((j + 1) * side, reduced)
    offs_C, offs_W = tl.arange(0, CHANNELS), tl.arange(0, WINDOW * WINDOW)
    row_W, column_W = top + offs_W // WINDOW, left + offs_W % WINDOW
    is_inside_W = (row_W < bottom) & (column_W < right)
    place_CW = (image * CHANNELS + offs_C)[:, None] * (side * side)
    place_CW += (row_W * side + column_W)[None, :]
    x_CW = tl.load(planes + place_CW, mask=is_inside_W[None, :], other=0.0)
    count = ((bottom - top) * (right - left)).to(tl.float32)
    mean_C = tl.sum(x_CW, axis=1) / count
    tl.store(out + (image * reduced * reduced + cell) * CHANNELS + offs_C, mean_C)
