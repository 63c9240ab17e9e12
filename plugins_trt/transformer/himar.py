"""What lies around the blocks of Hi-MAR's passes as Triton kernels: their input and their output.

A pass is an encoder, which sees the buffer and the known tokens alone, and a decoder, which sees
all positions: the buffer, then the pivots, then the dense tokens. Rows are those of all images,
image after image. The blocks themselves are launches of `kernel.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugins_trt.transformer.kernel import _begin, _end


@triton.jit
def _affine_norm(x, gain, offset, is_value, width, eps):
    """Layer norm of a row, in float32."""
    mean = tl.sum(tl.where(is_value, x, 0.0), axis=0) / width
    x = tl.where(is_value, x - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + eps)
    return x * inverse * gain + offset


@triton.jit
def class_kernel(label, rows, out, width, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    """Rows of a table. Grid (N,).

    Args:
        label: (N,) int32.
        rows: (classes + 1, width).
        out: (N, width).
        BLOCK: power of two, at least `width`.
    """
    image, offs = tl.program_id(0), tl.arange(0, BLOCK)
    is_value = offs < width
    _begin(OVERLAPS)
    _end(OVERLAPS)
    row = tl.load(label + image).to(tl.int64)
    x = tl.load(rows + row * width + offs, mask=is_value, other=0.0)
    tl.store(out + image * width + offs, x, mask=is_value)


@triton.jit
def known_kernel(
    cond, buffer, pivots, pivot_table, tokens, known, weights, bias, table, gain, offset, out,
    length, buffer_size, num_pivots, num_tokens, width, eps,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Input of the encoder: its rows with what their positions add, and their norm.

    Grid (N * length,), `length` being buffer_size + num_pivots + known tokens.

    Args:
        cond: (N, width), of every row of the buffer.
        buffer: (buffer_size, width), added to these.
        pivots: (N, num_pivots, width), embedded; num_pivots is 0 in the phase that makes them.
        pivot_table: (num_pivots, width), added to these.
        tokens: (N, num_tokens, CHANNELS) float32, of the phase's grid; rounded to fp16.
        known: (N, known tokens) int32, positions in the grid.
        weights, bias: (CHANNELS, width) and (width,), that tokens are embedded by.
        table: (num_tokens, width), added to these.
        gain, offset: (width,), of the norm.
        out: (N, length, width).
        BLOCK: power of two, at least `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    image, at = row // length, row % length
    offs = tl.arange(0, BLOCK)
    is_value = offs < width
    gain_ = tl.load(gain + offs, mask=is_value, other=0.0).to(tl.float32)
    offset_ = tl.load(offset + offs, mask=is_value, other=0.0).to(tl.float32)
    _begin(OVERLAPS)
    _end(OVERLAPS)
    first = buffer_size + num_pivots
    if at < buffer_size:
        x = tl.load(cond + image * width + offs, mask=is_value, other=0.0).to(tl.float32)
        x += tl.load(buffer + at * width + offs, mask=is_value, other=0.0).to(tl.float32)
    elif at < first:
        pivot = at - buffer_size
        place = (image * num_pivots + pivot) * width + offs
        x = tl.load(pivots + place, mask=is_value, other=0.0).to(tl.float32)
        x += tl.load(pivot_table + pivot * width + offs, mask=is_value, other=0.0).to(tl.float32)
    else:
        position = tl.load(known + image * (length - first) + at - first).to(tl.int64)
        x = tl.load(bias + offs, mask=is_value, other=0.0).to(tl.float32)
        x += tl.load(table + position * width + offs, mask=is_value, other=0.0).to(tl.float32)
        tokens += (image * num_tokens + position) * CHANNELS
        for channel in tl.static_range(CHANNELS):
            token = tl.load(tokens + channel).to(tl.float16).to(tl.float32)
            w = tl.load(weights + channel * width + offs, mask=is_value, other=0.0)
            x += token * w.to(tl.float32)
    x = _affine_norm(x, gain_, offset_, is_value, width, eps)
    tl.store(out + row * width + offs, x.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def fill_kernel(
    x, source, buffer, placed, masked, out,
    length, known_length, buffer_size, width, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Input of the decoder: known rows at their positions, mask tokens at all others.

    Grid (N * length,), `length` being buffer_size + the positions of both grids.

    Args:
        x: (N, known_length, width), the buffer and the known rows.
        source: (N, length - buffer_size) int32, of each position its known row from 0, or -1.
        buffer: (buffer_size, width), added to the rows of the buffer.
        placed: (length - buffer_size, width), added to known rows.
        masked: (length - buffer_size, width), rows of the other positions.
        out: (N, length, width).
        BLOCK: power of two, at least `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    image, at = row // length, row % length
    offs = tl.arange(0, BLOCK)
    is_value = offs < width
    _begin(OVERLAPS)
    _end(OVERLAPS)
    x += image * known_length * width + offs
    if at < buffer_size:
        y = tl.load(x + at * width, mask=is_value, other=0.0).to(tl.float32)
        y += tl.load(buffer + at * width + offs, mask=is_value, other=0.0).to(tl.float32)
    else:
        position = at - buffer_size
        known = tl.load(source + image * (length - buffer_size) + position).to(tl.int64)
        if known < 0:
            y = tl.load(masked + position * width + offs, mask=is_value, other=0.0).to(tl.float32)
        else:
            y = tl.load(x + (buffer_size + known) * width, mask=is_value, other=0.0).to(tl.float32)
            place = placed + position * width + offs
            y += tl.load(place, mask=is_value, other=0.0).to(tl.float32)
    tl.store(out + row * width + offs, y.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def take_kernel(
    x, predicted, gain, offset, table, out,
    length, taken, first, width, eps,
    HAS_INDEX: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Conditions z of some positions: the norm of the decoder's rows, and a table.

    Grid (N * taken,).

    Args:
        x: (N, length, width), output of the decoder's blocks.
        predicted: (N, taken) int32, positions in the phase's grid, with HAS_INDEX; without, they
            are 0 to taken - 1.
        gain, offset: (width,), of the norm.
        table: (positions, width), added after it.
        out: (N, taken, width).
        first: row of x that holds position 0 of the grid.
        BLOCK: power of two, at least `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    image, position = row // taken, row % taken
    offs = tl.arange(0, BLOCK)
    is_value = offs < width
    gain_ = tl.load(gain + offs, mask=is_value, other=0.0).to(tl.float32)
    offset_ = tl.load(offset + offs, mask=is_value, other=0.0).to(tl.float32)
    _begin(OVERLAPS)
    _end(OVERLAPS)
    if HAS_INDEX:
        position = tl.load(predicted + row).to(tl.int64)
    place = x + (image * length + first + position) * width + offs
    y = tl.load(place, mask=is_value, other=0.0).to(tl.float32)
    y = _affine_norm(y, gain_, offset_, is_value, width, eps)
    y += tl.load(table + position * width + offs, mask=is_value, other=0.0).to(tl.float32)
    tl.store(out + row * width + offs, y.to(out.dtype.element_ty), mask=is_value)
