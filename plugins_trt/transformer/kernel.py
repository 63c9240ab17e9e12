"""Linear layers, norms and attention of the transformer passes as Triton kernels.

Rows are the tokens of all images, `length` of each, image after image. Activations and weights are
fp16; sums, norms and logits are float32. A block is seven launches: norm, qkv, attention,
projection, norm, and the two layers of the MLP. Widths are run-time arguments, so that the same
kernels serve models of all sizes. On Hopper, linear layers of few to some hundred rows are
`csrc/narrow.cu`, with the results of `linear_kernel`; those of many rows are `csrc/linear.cu`,
where GELU takes the hardware's tangent: at about 2^-11 of it, a result may be |x| / 4096 off.
Attention of many queries is `csrc/attention.cu`.

With few rows the time goes into waiting for the kernel before. With OVERLAPS a kernel is put onto
its multiprocessors while the one before it writes its results, and waits there (programmatic
dependent launch). Every kernel lets the next one start only after its own wait, so what ran before
the one before is over: what that wrote, such as the residual stream and modulation vectors, and
what no kernel writes is read before the wait.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

HEAD_DIM = tl.constexpr(64)
LOG2_E = tl.constexpr(1.4426950408889634)
GELU_EXPONENT = tl.constexpr(-1.5957691216057308 * 1.4426950408889634)  # -2 sqrt(2 / pi) log2(e)
LOWEST = tl.constexpr(-3.0e38)  # finite, so that a step without visible keys changes nothing
NORM_FLOOR = tl.constexpr(1e-12)  # of queries and keys, as `torch.nn.functional.normalize` has it

PLAIN = tl.constexpr(0)  # what follows a linear layer
GELU = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)  # gated, and added to the residual stream
SILU = tl.constexpr(3)
GELU_ERF = tl.constexpr(4)


@triton.jit
def _begin(OVERLAPS: tl.constexpr):
    """Waits until all kernels before this one are over."""
    if OVERLAPS:
        gdc_wait()


@triton.jit
def _end(OVERLAPS: tl.constexpr):
    """The next kernel may be put onto the multiprocessors: little is left to do."""
    if OVERLAPS:
        gdc_launch_dependents()


@triton.jit
def normalize_kernel(
    x, ada, gain, offset, out, length, width, ada_stride, scale_at, shift_at, eps,
    HAS_LOW: tl.constexpr, IS_AFFINE: tl.constexpr, IS_MODULATED: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Layer norm and modulation of a row. Grid (rows,).

    Args:
        x: (rows, width).
        ada: modulation vectors of the images, `ada_stride` values apart, at `scale_at` and
            `shift_at`; read with IS_MODULATED.
        gain, offset: (width,), weight and bias of the norm with IS_AFFINE.
        out: (rows, width); with HAS_LOW (rows, 2 * width), each row being the rounded result and
            what it lacks of the float32 one.
        BLOCK: power of two, at least `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * width
    out += row * width * (2 if HAS_LOW else 1)
    ada += row // length * ada_stride
    offs = tl.arange(0, BLOCK)
    is_value = offs < width
    if IS_MODULATED:
        scale = tl.load(ada + scale_at + offs, mask=is_value, other=0.0).to(tl.float32)
        shift = tl.load(ada + shift_at + offs, mask=is_value, other=0.0).to(tl.float32)
    else:
        scale, shift = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if IS_AFFINE:  # (y * gain + offset) * (1 + scale) + shift
        shift += tl.load(offset + offs, mask=is_value, other=0.0).to(tl.float32) * (1.0 + scale)
        scale = tl.load(gain + offs, mask=is_value, other=0.0).to(tl.float32) * (1.0 + scale) - 1.0
    _begin(OVERLAPS)
    _end(OVERLAPS)
    value = tl.load(x + offs, mask=is_value, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / width
    value = tl.where(is_value, value - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    value = value * inverse * (1.0 + scale) + shift
    high = value.to(out.dtype.element_ty)
    tl.store(out + offs, high, mask=is_value)
    if HAS_LOW:
        low = (value - high.to(tl.float32)).to(out.dtype.element_ty)
        tl.store(out + width + offs, low, mask=is_value)


@triton.jit
def _locate(tile, rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of a tile: GROUP_M row tiles take turns, so that they share weights in the
    cache."""
    num_tiles_m, num_tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(width, BLOCK_N)
    group = tile // (GROUP_M * num_tiles_n)
    size_m = tl.minimum(num_tiles_m - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * num_tiles_n)
    return (group * GROUP_M + within % size_m) * BLOCK_M, within // size_m * BLOCK_N


@triton.jit
def _depths(k, depth, HAS_LOW: tl.constexpr):
    """Where step k reads x and weights: with HAS_LOW, high times high, high times low, and low
    times high halves."""
    if HAS_LOW:
        return tl.where(k < depth, k, k - depth), tl.where(k < 2 * depth, k, k - 2 * depth)
    else:
        return k, k


@triton.jit
def _operands(
    ada, bias, residual, first_m, first_n, rows, length, width, ada_stride, gate_at,
    EPILOGUE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What the epilogue of a tile needs beside the product: bias, gates, residual values."""
    row_M, offs_N = first_m + tl.arange(0, M), first_n + tl.arange(0, N)
    is_column_N = offs_N < width
    bias_N = tl.load(bias + offs_N, mask=is_column_N, other=0.0)
    if EPILOGUE == RESIDUAL:
        is_value_MN = (row_M < rows)[:, None] & is_column_N[None, :]
        gate = ada + gate_at + (row_M // length)[:, None] * ada_stride + offs_N[None, :]
        place_MN = row_M.to(tl.int64)[:, None] * width + offs_N[None, :]
        return (
            bias_N,
            tl.load(gate, mask=is_value_MN, other=0.0),
            tl.load(residual + place_MN, mask=is_value_MN, other=0.0),
        )
    else:
        return bias_N, bias_N, bias_N


@triton.jit
def _gelu_erf(x):
    """x * (1 + erf(x / sqrt(2))) / 2, with Abramowitz and Stegun 7.1.26: 1.5e-7 off in erf."""
    t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(x))
    poly = t * (1.061405429 * t - 1.453152027) + 1.421413741
    poly = t * (t * (t * poly - 0.284496736) + 0.254829592)
    return tl.maximum(x, 0.0) - 0.5 * tl.abs(x) * poly * tl.exp2(x * x * (-0.5 * LOG2_E))


@triton.jit
def _write(acc_MN, operands, out, first_m, first_n, rows, width, EPILOGUE: tl.constexpr):
    """Stores a tile of a linear layer, after what follows the layer."""
    row_M = first_m + tl.arange(0, acc_MN.shape[0])
    offs_N = first_n + tl.arange(0, acc_MN.shape[1])
    is_value_MN = (row_M < rows)[:, None] & (offs_N < width)[None, :]
    place_MN = row_M.to(tl.int64)[:, None] * width + offs_N[None, :]
    acc_MN += operands[0].to(tl.float32)[None, :]
    if EPILOGUE == GELU:  # the tanh approximation; 1 + tanh(u) is 2 / (1 + exp(-2 u))
        cubic_MN = acc_MN * (1.0 + 0.044715 * acc_MN * acc_MN)
        acc_MN = acc_MN / (1.0 + tl.exp2(cubic_MN * GELU_EXPONENT))
    if EPILOGUE == GELU_ERF:
        acc_MN = _gelu_erf(acc_MN)
    if EPILOGUE == SILU:
        acc_MN = acc_MN / (1.0 + tl.exp2(acc_MN * -LOG2_E))
    if EPILOGUE == RESIDUAL:
        acc_MN = operands[2].to(tl.float32) + operands[1].to(tl.float32) * acc_MN
    tl.store(out + place_MN, acc_MN.to(out.dtype.element_ty), mask=is_value_MN)


@triton.jit
def linear_kernel(
    x, ada, weights, bias, residual, out, partials, arrivals,
    rows, length, depth, width, ada_stride, gate_at,
    EPILOGUE: tl.constexpr, HAS_LOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SPLITS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A linear layer of few rows, and what follows it. Grid (tiles, SPLITS).

    With SPLITS > 1, programs that share a tile each add up some of `depth`; the one that arrives
    last adds the partial sums, always in the same order.

    Args:
        x: (rows, depth); with HAS_LOW (rows, 2 * depth), of `normalize_kernel`.
        ada: as of `normalize_kernel`, at `gate_at`; read by the epilogue RESIDUAL.
        weights: (depth, width); with HAS_LOW (2 * depth, width), all high halves before all low
            ones.
        bias: (width,).
        residual: (rows, width), read by the epilogue RESIDUAL; may be `out`.
        out: (rows, width).
        partials: (SPLITS, rows, width) float32, scratch memory where SPLITS > 1.
        arrivals: (tiles,) int32 where SPLITS > 1: zero before, and zero again after.
        depth, width: multiples of 64; BLOCK_K divides `depth`.
        EPILOGUE: PLAIN, GELU, SILU, GELU_ERF, or RESIDUAL: residual + gate * (x @ weights + bias).
        GROUP_M: row tiles that are computed together.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    first_m, first_n = _locate(tile, rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    row_M = first_m + tl.arange(0, BLOCK_M)
    offs_N = first_n + tl.arange(0, BLOCK_N)
    # columns beyond the last one are read elsewhere and dropped; were rows, too, all programs would
    # wait for the same one
    read_N = tl.max_contiguous(tl.multiple_of(offs_N % width, 16), 16)
    total_depth = depth * (3 if HAS_LOW else 1)
    steps = tl.cdiv(total_depth // BLOCK_K, SPLITS)
    first_k = split * steps * BLOCK_K
    end_k = tl.minimum(first_k + steps * BLOCK_K, total_depth)
    operands = _operands(
        ada, bias, residual, first_m, first_n, rows, length, width, ada_stride, gate_at,
        EPILOGUE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    offs_K = tl.arange(0, BLOCK_K)
    w_KN = weights + offs_K[:, None] * width + read_N[None, :]
    _begin(OVERLAPS)
    row_stride = depth * (2 if HAS_LOW else 1)
    is_row_M1 = (row_M < rows)[:, None]
    x_MK = x + row_M.to(tl.int64)[:, None] * row_stride + offs_K[None, :]
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(first_k, end_k, BLOCK_K):
        x_k, w_k = _depths(k, depth, HAS_LOW)
        a_MK = tl.load(x_MK + x_k, mask=is_row_M1, other=0.0)
        acc_MN = tl.dot(a_MK, tl.load(w_KN + w_k * width), acc=acc_MN)
    _end(OVERLAPS)
    if SPLITS == 1:
        _write(acc_MN, operands, out, first_m, first_n, rows, width, EPILOGUE)
    else:
        is_value_MN = (row_M < rows)[:, None] & (offs_N < width)[None, :]
        place_MN = partials + row_M[:, None] * width + offs_N[None, :]
        tl.store(place_MN + split * rows * width, acc_MN, mask=is_value_MN)
        tl.debug_barrier()  # the program's partial sums are all there before it arrives
        arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            tl.store(arrivals + tile, 0)
            acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for part in tl.static_range(SPLITS):
                part_MN = place_MN + part * rows * width
                # past the L1 cache: others wrote it
                acc_MN += tl.load(part_MN, mask=is_value_MN, other=0.0, cache_modifier=".cg")
            _write(acc_MN, operands, out, first_m, first_n, rows, width, EPILOGUE)


@triton.jit
def _inverse_norm(x_Nd):
    x_Nd = x_Nd.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x_Nd * x_Nd, axis=1)), NORM_FLOOR)


@triton.jit
def _keys(kv, start, length, width, BLOCK_L: tl.constexpr):
    """Keys and values from a token on, and which of them there are."""
    offs_L, offs_d = start + tl.arange(0, BLOCK_L), tl.arange(0, HEAD_DIM)
    is_key_L = offs_L < length
    k_Ld = kv + offs_L[:, None] * (3 * width) + offs_d[None, :]
    v_Ld = tl.load(k_Ld + width, mask=is_key_L[:, None], other=0.0)
    return tl.load(k_Ld, mask=is_key_L[:, None], other=0.0), v_Ld, is_key_L


@triton.jit
def _logits(q_Qd, k_Ld, is_key_L, scale_Q, HAS_NORM: tl.constexpr):
    logits_QL = tl.dot(q_Qd, tl.trans(k_Ld))
    if HAS_NORM:
        logits_QL *= _inverse_norm(k_Ld)[None, :]
    return tl.where(is_key_L[None, :], logits_QL * scale_Q[:, None], float("-inf"))


@triton.jit
def attention_kernel(
    qkv, scale_mul, out, length, width,
    HAS_NORM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_L: tl.constexpr, IS_WHOLE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Attention within each image. Grid (query blocks, heads, N).

    Args:
        qkv: (N, length, 3, width), `width` being heads times 64.
        scale_mul: (heads,) float32, factor on the logits of unit-length queries and keys with
            HAS_NORM; without, queries and keys are taken as they are, and the factor is 1 / 8.
        out: (N, length, width).
        BLOCK_Q, BLOCK_L: queries of a program, keys of a step.
        IS_WHOLE: one step is enough: BLOCK_L is at least `length`.
    """
    _begin(OVERLAPS)
    _end(OVERLAPS)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    qkv += image * length * 3 * width + head * HEAD_DIM
    offs_Q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, HEAD_DIM)
    is_query_Q1 = (offs_Q < length)[:, None]
    q_Qd = tl.load(
        qkv + offs_Q[:, None] * (3 * width) + offs_d[None, :], mask=is_query_Q1, other=0.0
    )
    if HAS_NORM:
        scale_Q = _inverse_norm(q_Qd) * (tl.load(scale_mul + head) * LOG2_E)
    else:
        scale_Q = tl.zeros([BLOCK_Q], tl.float32) + 0.125 * LOG2_E
    if IS_WHOLE:
        k_Ld, v_Ld, is_key_L = _keys(qkv + width, 0, length, width, BLOCK_L)
        logits_QL = _logits(q_Qd, k_Ld, is_key_L, scale_Q, HAS_NORM)
        p_QL = tl.exp2(logits_QL - tl.max(logits_QL, axis=1)[:, None])
        sum_Q = tl.sum(p_QL, axis=1)
        acc_Qd = tl.dot(p_QL.to(v_Ld.dtype), v_Ld)
    else:
        acc_Qd = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
        sum_Q = tl.zeros([BLOCK_Q], tl.float32)
        max_Q = tl.zeros([BLOCK_Q], tl.float32) + LOWEST
        for start in range(0, length, BLOCK_L):
            k_Ld, v_Ld, is_key_L = _keys(qkv + width, start, length, width, BLOCK_L)
            logits_QL = _logits(q_Qd, k_Ld, is_key_L, scale_Q, HAS_NORM)
            new_max_Q = tl.maximum(max_Q, tl.max(logits_QL, axis=1))
            p_QL = tl.exp2(logits_QL - new_max_Q[:, None])
            shrink_Q = tl.exp2(max_Q - new_max_Q)
            sum_Q = sum_Q * shrink_Q + tl.sum(p_QL, axis=1)
            acc_Qd = tl.dot(p_QL.to(v_Ld.dtype), v_Ld, acc=acc_Qd * shrink_Q[:, None])
            max_Q = new_max_Q
    o_Qd = (acc_Qd / sum_Q[:, None]).to(out.dtype.element_ty)
    out += image * length * width + head * HEAD_DIM
    tl.store(out + offs_Q[:, None] * width + offs_d[None, :], o_Qd, mask=is_query_Q1)
