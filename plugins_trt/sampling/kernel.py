"""The sampling rule of `runtime.sampler` as Triton kernels, and the pixels of an image.

`draw_kernel` turns the logits of one pass into tokens and confidences, `select_kernel` picks the
least confident tokens for the next masked pass. Settings, seeds and image numbers are read from the
device, so that a captured CUDA graph can be replayed with others.

They choose what the NumPy rule chooses from the same logits. Sums are in float64 here, where NumPy
adds float32 probabilities of the nucleus one after the other; a token at the very edge of the
nucleus can therefore fall on the other side.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAX_PASSES = tl.constexpr(256)  # as in runtime.philox
MASK_CFG_RATIO = tl.constexpr(1e-6)  # as in runtime.sampler


@triton.jit
def _ordered(x):
    """Unsigned integers in the order of the floats, for a search by bits; -0 and 0 are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def _kth_largest(keys_V, k):
    """The largest integer that at least k keys reach.

    Two bits at a time: the three counts of a step are added up as fields of one integer.
    """
    found = tl.full([], 0, tl.uint32)
    for step in range(16):
        unit = tl.full([], 1, tl.uint32) << (30 - 2 * step)
        one_V = (keys_V >= found + unit).to(tl.int64)
        two_V = (keys_V >= found + 2 * unit).to(tl.int64)
        three_V = (keys_V >= found + 3 * unit).to(tl.int64)
        counts = tl.sum(one_V + (two_V << 20) + (three_V << 40), axis=0)
        reached = ((counts & 0xFFFFF) >= k).to(tl.uint32)
        reached += (((counts >> 20) & 0xFFFFF) >= k).to(tl.uint32)
        found += unit * (reached + ((counts >> 40) >= k).to(tl.uint32))
    return found


@triton.jit
def _add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _nucleus_edge(keys_V, p_V, outside):
    """The smallest key whose mass, together with that of all smaller keys, exceeds `outside`."""
    found = tl.full([], 0, tl.uint32)
    for step in range(16):
        unit = tl.full([], 1, tl.uint32) << (30 - 2 * step)
        below_one, below_two, below_three = tl.reduce(
            (
                tl.where(keys_V < found + unit, p_V, 0.0),
                tl.where(keys_V < found + 2 * unit, p_V, 0.0),
                tl.where(keys_V < found + 3 * unit, p_V, 0.0),
            ),
            0,
            _add_three,
        )
        passed = (below_one <= outside).to(tl.uint32) + (below_two <= outside).to(tl.uint32)
        found += unit * (passed + (below_three <= outside).to(tl.uint32))
    return found


@triton.jit
def _uniform(seed, position, step, image):
    """The number of `runtime.philox.uniforms`, float64 in [0, 1)."""
    low = tl.full([], 0xFFFFFFFF, tl.int64)
    x0, x1, _, _ = tl.philox(
        seed,
        position.to(tl.uint32),
        step.to(tl.uint32),
        (image & low).to(tl.uint32),
        ((image >> 32) & low).to(tl.uint32),
    )
    word = x0.to(tl.uint64) | (x1.to(tl.uint64) << 32)
    return (word >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit(
    do_not_specialize=[
        "batch", "length", "vocab", "scale_idx", "num_scales", "pass_idx", "is_guided"
    ]
)  # fmt: skip
def draw_kernel(
    logits, tokens, confidences, token_mask, settings, seed, images,
    batch, length, vocab, scale_idx, num_scales, pass_idx, is_guided,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Draws one token. Grid (length, batch).

    Args:
        logits: (2B, l, V) float32, conditional half first; (B, l, V) if not `is_guided`.
        tokens: (B, l) int32, written; in a masked pass only where `token_mask` is set.
        confidences: (B, l) float32, written likewise: probability under the truncated distribution.
        token_mask: (B, l) bool, read in masked passes only.
        settings: (3,) float64: cfg, top_k, top_p.
        seed: (1,) int64, its bits.
        images: (B,) int64, the bits of the image numbers.
        pass_idx: 0 = next-scale pass, j = j-th masked pass.
        is_guided: 1 or 0.
        BLOCK_V: power of two, at least the vocabulary.
    """
    position, row = tl.program_id(0), tl.program_id(1)
    place = row * length + position
    if tl.load(token_mask + place, mask=pass_idx > 0, other=1) == 0:
        return
    cfg, top_k = tl.load(settings), tl.load(settings + 1).to(tl.int32)
    top_p = tl.load(settings + 2)
    offs_V = tl.arange(0, BLOCK_V)
    is_token_V = offs_V < vocab
    first = place.to(tl.int64) * vocab
    logits_V = tl.load(logits + first + offs_V, mask=is_token_V, other=float("-inf"))
    if is_guided != 0:
        second = first + batch.to(tl.int64) * length * vocab
        uncond_V = tl.load(logits + second + offs_V, mask=is_token_V, other=0.0)
        t = tl.where(pass_idx > 0, cfg * MASK_CFG_RATIO, cfg * scale_idx / (num_scales - 1))
        scaled_V = (1.0 + t).to(tl.float32) * logits_V
        logits_V = scaled_V - t.to(tl.float32) * uncond_V

    lowest, highest = tl.full([], 0, tl.uint32), tl.full([], 0xFFFFFFFF, tl.uint32)
    keys_V = tl.where(is_token_V, _ordered(logits_V), lowest)
    is_kept_V = is_token_V
    if (top_k > 0) & (top_k < vocab):
        is_kept_V = is_kept_V & (keys_V >= _kth_largest(keys_V, top_k))
    max_logit = tl.max(logits_V, axis=0)
    if top_p > 0:
        p_V = tl.where(is_kept_V, tl.exp(logits_V - max_logit), 0.0).to(tl.float64)
        p_V = (p_V / tl.sum(p_V)).to(tl.float32).to(tl.float64)
        outside = (1.0 - top_p).to(tl.float32).to(tl.float64)
        edge = _nucleus_edge(tl.where(is_kept_V, keys_V, highest), p_V, outside)
        # of the tokens at the edge, as many go as fit, in vocabulary order; the last of all stays
        is_edge_V = is_kept_V & (keys_V == edge)
        below = tl.sum(tl.where(keys_V < edge, p_V, 0.0))
        sums_V = below + tl.cumsum(tl.where(is_edge_V, p_V, 0.0), axis=0)
        is_last_V = (
            tl.cumsum(is_edge_V.to(tl.int32), axis=0) == tl.sum(is_edge_V.to(tl.int32))
        ) & (edge == tl.max(keys_V, axis=0))
        is_kept_V = is_kept_V & (keys_V >= edge)
        is_kept_V = is_kept_V & ((is_edge_V == 0) | (sums_V > outside) | is_last_V)

    p_V = tl.where(is_kept_V, tl.exp(logits_V.to(tl.float64) - max_logit.to(tl.float64)), 0.0)
    cdf_V = tl.cumsum(p_V, axis=0)
    total = tl.max(cdf_V, axis=0)
    step = MAX_PASSES * scale_idx + pass_idx
    u = _uniform(tl.load(seed), position, step, tl.load(images + row))
    token = tl.sum((cdf_V <= u * total).to(tl.int32))
    p = tl.sum(tl.where(offs_V == token, p_V, 0.0)) / total
    tl.store(tokens + place, token)
    tl.store(confidences + place, p.to(tl.float32))


@triton.jit(do_not_specialize=["length", "num_candidates", "count", "is_first"])
def select_kernel(
    confidences, candidates, selected, token_mask, length, num_candidates, count, is_first,
    BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Least confident candidates of one image, lowest first, equal ones in the given order.

    Grid (batch,).

    Args:
        confidences: (B, l) float32.
        candidates: (B, l) int32 positions, the first `num_candidates` of every row; if `is_first`
            is 1, they are 0, 1, 2, … and not read.
        selected: (B, l) int32, its first `count` entries written; may not be `candidates`.
        token_mask: (B, l) bool, written: True at the selected positions.
        BLOCK_L: power of two, at least `length`.
        BLOCK_C: candidates compared at once.
    """
    row = tl.program_id(0)
    offs_L = tl.arange(0, BLOCK_L)
    is_candidate_L = offs_L < num_candidates
    num_given = tl.where(is_first != 0, 0, num_candidates)
    candidates += row * length
    position_L = tl.load(candidates + offs_L, mask=offs_L < num_given, other=0)
    position_L = tl.where(is_first != 0, offs_L, position_L)
    confidence_L = tl.load(
        confidences + row * length + position_L, mask=is_candidate_L, other=float("inf")
    )
    rank_L = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, num_candidates, BLOCK_C):
        offs_C = start + tl.arange(0, BLOCK_C)
        is_other_C = offs_C < num_candidates
        position_C = tl.load(candidates + offs_C, mask=offs_C < num_given, other=0)
        position_C = tl.where(is_first != 0, offs_C, position_C)
        other_C = tl.load(
            confidences + row * length + position_C, mask=is_other_C, other=float("inf")
        )
        is_before = (other_C[None, :] < confidence_L[:, None]) | (
            (other_C[None, :] == confidence_L[:, None]) & (offs_C[None, :] < offs_L[:, None])
        )
        rank_L += tl.sum((is_before & is_other_C[None, :]).to(tl.int32), axis=1)
    is_selected_L = is_candidate_L & (rank_L < count)
    tl.store(selected + row * length + rank_L, position_L, mask=is_selected_L)
    tl.store(token_mask + row * length + offs_L, (offs_L < 0), mask=offs_L < length)
    tl.debug_barrier()
    tl.store(token_mask + row * length + position_L, (offs_L >= 0), mask=is_selected_L)


@triton.jit(do_not_specialize=["num_pixels"])
def to_uint8_kernel(image, pixels, num_pixels, BLOCK: tl.constexpr):
    """Images (B, 3, H, W) float32 in [0, 1] as (B, H, W, 3) uint8.

    Grid (ceil(num_pixels / BLOCK), batch), with H * W pixels.
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1).to(tl.int64) * num_pixels * 3
    is_pixel = offs < num_pixels
    for channel in tl.static_range(3):
        value = tl.load(image + first + channel * num_pixels + offs, mask=is_pixel, other=0.0)
        scaled = value * 255.0
        # adding 1.5 * 2^23 rounds to the nearest integer, ties to the even one; the product must
        # not be fused with the sum (`Unit.fuses_products`)
        rounded = (scaled + 12582912.0) - 12582912.0
        rounded = tl.minimum(tl.maximum(rounded, 0.0), 255.0)
        tl.store(pixels + first + offs * 3 + channel, rounded.to(tl.uint8), mask=is_pixel)
