"""The op as one Triton kernel: PyTorch compiles it just in time, `aot` ahead of time.

A program owns BLOCK_M consecutive positions of one row and head, wherever blocks begin and end, so
a pack of many short blocks makes as few programs as one long block of the same length. It reads
from `cu_seqlens` which keys its positions may see, and walks over those in steps of BLOCK_N with a
running softmax (Milakov and Gimelshein, arXiv:1805.02867). Steps that every position of the program
sees in full need no mask and run in a loop of their own.

Norms of queries are taken where the queries are loaded. Norms of keys are taken in each step, or,
where many programs would repeat that for the same keys, `normalize_keys_kernel` writes normalised
keys beforehand, and the steps read those.
"""

from __future__ import annotations

import triton
import triton.language as tl

from plugins_trt.block_sparse_attn.spec import NORM_FLOOR
from plugins_trt.block_sparse_attn.variants import Norm

LOG2_E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(NORM_FLOOR)
LOWEST = tl.constexpr(-3.0e38)  # finite, so that a step without visible keys changes nothing
SCAN = tl.constexpr(256)  # boundaries read at once while looking for the program's blocks
NEAR = tl.constexpr(16)  # boundaries compared at once with every position
NO_NORM = tl.constexpr(Norm.NONE.value)
NORM_IN_STEPS = tl.constexpr(Norm.IN_STEPS.value)
NORM_BEFOREHAND = tl.constexpr(Norm.BEFOREHAND.value)


@triton.jit
def _inverse_norm(x_Nd):
    x_Nd = x_Nd.to(tl.float32)
    square_N = tl.maximum(tl.sum(x_Nd * x_Nd, axis=1), FLOOR * FLOOR)
    inverse_N = tl.rsqrt(square_N)
    # one Newton step, since the instruction has 22 bits
    return inverse_N * (1.5 - 0.5 * square_N * inverse_N * inverse_N)


@triton.jit
def _step(
    acc_Md, sum_M, max_M, q_Md, row_scale_M, key_sign,
    k, v, start, key_stride_t, stride_t, offs_N, offs_d, first_M, stop_M, key_stop,
    IS_MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The running softmax after the keys `start + offs_N`."""
    k += start.to(tl.int64) * key_stride_t
    v += start.to(tl.int64) * stride_t
    k_offs_Nd = offs_N[:, None] * key_stride_t + offs_d[None, :]
    v_offs_Nd = offs_N[:, None] * stride_t + offs_d[None, :]
    if IS_MASKED:
        is_key_Nd = (start + offs_N < key_stop)[:, None] & (offs_d < HEAD_DIM)[None, :]
        k_Nd = tl.load(k + k_offs_Nd, mask=is_key_Nd, other=0.0)
        v_Nd = tl.load(v + v_offs_Nd, mask=is_key_Nd, other=0.0)
    elif HEAD_DIM < offs_d.shape[0]:
        k_Nd = tl.load(k + k_offs_Nd, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
        v_Nd = tl.load(v + v_offs_Nd, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
    else:
        k_Nd = tl.load(k + k_offs_Nd)
        v_Nd = tl.load(v + v_offs_Nd)
    logits_MN = tl.dot(q_Md, tl.trans(k_Nd), input_precision="ieee")
    if NORM == NORM_IN_STEPS:
        logits_MN = logits_MN * (_inverse_norm(k_Nd) * key_sign)[None, :]
    if IS_MASKED:
        position_N = start + offs_N
        is_seen_MN = (position_N[None, :] >= first_M[:, None]) & (
            position_N[None, :] < stop_M[:, None]
        )
        logits_MN = tl.where(is_seen_MN, logits_MN * row_scale_M[:, None], float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(logits_MN, axis=1))
        p_MN = tl.exp2(logits_MN - new_max_M[:, None])
    else:  # scaling after the maximum becomes one multiply-add; the scale is not negative
        new_max_M = tl.maximum(max_M, tl.max(logits_MN, axis=1) * row_scale_M)
        p_MN = tl.exp2(logits_MN * row_scale_M[:, None] - new_max_M[:, None])
    shrink_M = tl.exp2(max_M - new_max_M)
    sum_M = sum_M * shrink_M + tl.sum(p_MN, axis=1)
    acc_Md = tl.dot(
        p_MN.to(v_Nd.dtype), v_Nd, acc=acc_Md * shrink_M[:, None], input_precision="ieee"
    )
    return acc_Md, sum_M, new_max_M


# lengths and counts change from call to call; a kernel for each of their properties would not pay
@triton.jit(do_not_specialize=["length", "heads", "num_blocks", "is_causal"])
def block_sparse_attention_kernel(
    q, k, v, o, cu_seqlens, scale_mul,
    stride_b, stride_t, stride_h, length, heads, num_blocks, sm_scale, is_causal,
    HEAD_DIM: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(length / BLOCK_M), heads, batch); arguments as in `csrc/bsa.h`.

    `scale_mul` is read with a norm only; `is_causal` is 1 for block_causal. All strides count
    elements and are shared by q, k and v; the last dimension is contiguous. With NORM_BEFOREHAND, k
    is what `normalize_keys_kernel` wrote.
    """
    PADDED_DIM: tl.constexpr = max(16, triton.next_power_of_2(HEAD_DIM))
    # with block_causal the last positions see the most keys: they start first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, row = tl.program_id(1), tl.program_id(2)
    offset = row.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    q, v = q + offset, v + offset
    if NORM == NORM_BEFOREHAND:
        k += (row.to(tl.int64) * heads + head) * length * HEAD_DIM
        key_stride_t = HEAD_DIM
    else:
        k += offset
        key_stride_t = stride_t

    first_position = tile * BLOCK_M
    last_position = tl.minimum(first_position + BLOCK_M, length) - 1
    position_M = first_position + tl.arange(0, BLOCK_M)
    offs_N, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, PADDED_DIM)
    is_query_Md = (position_M < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
    offs_Md = tl.arange(0, BLOCK_M)[:, None] * stride_t + offs_d[None, :]
    q_Md = tl.load(
        q + first_position.to(tl.int64) * stride_t + offs_Md, mask=is_query_Md, other=0.0
    )

    # boundaries at or before the first position, and at or before the last one
    num_first, num_last = 0, 0
    for start in range(0, num_blocks + 1, SCAN):
        index = start + tl.arange(0, SCAN)
        bound = tl.load(cu_seqlens + index, mask=index <= num_blocks, other=2147483647)
        num_first += tl.sum((bound <= first_position).to(tl.int32))
        num_last += tl.sum((bound <= last_position).to(tl.int32))
    # the program's positions see keys from key_start to key_stop - 1, and all of them see the keys
    # from full_start to full_stop - 1
    key_start = tl.load(cu_seqlens + num_first - 1)
    full_start = tl.load(cu_seqlens + num_last - 1)
    full_stop, key_stop = length, length
    if num_first <= num_blocks:
        full_stop = tl.minimum(tl.load(cu_seqlens + num_first), length)
    if num_last <= num_blocks:
        key_stop = tl.minimum(tl.load(cu_seqlens + num_last), length)
    if is_causal:
        key_start, full_start = 0, 0
    num_before = tl.cdiv(full_start - key_start, BLOCK_N)
    unmasked_start = key_start + num_before * BLOCK_N
    num_unmasked = tl.maximum(full_stop - unmasked_start, 0) // BLOCK_N
    unmasked_stop = unmasked_start + num_unmasked * BLOCK_N
    num_masked = num_before + tl.cdiv(tl.maximum(key_stop - unmasked_stop, 0), BLOCK_N)

    key_sign = 1.0
    if NORM != NO_NORM:
        scale = tl.load(scale_mul + head)
        key_sign = tl.where(scale < 0, -1.0, 1.0)
        row_scale_M = _inverse_norm(q_Md) * (tl.abs(scale) * sm_scale * LOG2_E)
    else:
        row_scale_M = tl.full([BLOCK_M], LOG2_E, tl.float32) * sm_scale
    acc_Md = tl.zeros([BLOCK_M, PADDED_DIM], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.zeros([BLOCK_M], tl.float32) + LOWEST
    for step in range(0, num_unmasked):
        acc_Md, sum_M, max_M = _step(
            acc_Md, sum_M, max_M, q_Md, row_scale_M, key_sign,
            k, v, unmasked_start + step * BLOCK_N, key_stride_t, stride_t, offs_N, offs_d,
            position_M, position_M, key_stop, False, HEAD_DIM, NORM,
        )  # fmt: skip
    # for the steps with a mask: where the keys of each position start and stop
    first_M = tl.zeros([BLOCK_M], tl.int32)
    stop_M = tl.zeros([BLOCK_M], tl.int32) + length
    for start in range(num_first - 1, num_last + 1, NEAR):
        index = start + tl.arange(0, NEAR)
        bound = tl.load(cu_seqlens + index, mask=index <= num_blocks, other=2147483647)
        is_before = bound[None, :] <= position_M[:, None]
        first_M = tl.maximum(first_M, tl.max(tl.where(is_before, bound[None, :], 0), axis=1))
        stop_M = tl.minimum(stop_M, tl.min(tl.where(is_before, 2147483647, bound[None, :]), axis=1))
    if is_causal:
        first_M = tl.zeros([BLOCK_M], tl.int32)
    for step in range(0, num_masked):
        start = key_start + step * BLOCK_N
        start += tl.where(step < num_before, 0, unmasked_stop - unmasked_start)
        acc_Md, sum_M, max_M = _step(
            acc_Md, sum_M, max_M, q_Md, row_scale_M, key_sign,
            k, v, start, key_stride_t, stride_t, offs_N, offs_d,
            first_M, stop_M, key_stop, True, HEAD_DIM, NORM,
        )  # fmt: skip

    o_Md = (acc_Md / sum_M[:, None]).to(o.dtype.element_ty)
    width = heads * HEAD_DIM
    o += (row.to(tl.int64) * length + first_position) * width + head * HEAD_DIM
    offs_out = tl.arange(0, BLOCK_M)[:, None] * width + offs_d[None, :]
    tl.store(o + offs_out, o_Md, mask=is_query_Md)


@triton.jit(do_not_specialize=["length", "heads"])
def normalize_keys_kernel(
    k, scale_mul, normalized_k, stride_b, stride_t, stride_h, length, heads,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes k / |k| with the sign of `scale_mul` to normalized_k (B, H, T, d), contiguous.

    Grid (ceil(length / BLOCK_N), heads, batch).
    """
    head, row = tl.program_id(1), tl.program_id(2)
    position_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, max(16, triton.next_power_of_2(HEAD_DIM)))
    k += row.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    normalized_k += (row.to(tl.int64) * heads + head) * length * HEAD_DIM
    is_key_Nd = (position_N < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
    offs_Nd = position_N.to(tl.int64)[:, None] * stride_t + offs_d[None, :]
    k_Nd = tl.load(k + offs_Nd, mask=is_key_Nd, other=0.0)
    sign = tl.where(tl.load(scale_mul + head) < 0, -1.0, 1.0)
    unit_Nd = k_Nd.to(tl.float32) * (_inverse_norm(k_Nd) * sign)[:, None]
    offs_out_Nd = position_N.to(tl.int64)[:, None] * HEAD_DIM + offs_d[None, :]
    tl.store(normalized_k + offs_out_Nd, unit_Nd.to(k_Nd.dtype), mask=is_key_Nd)
