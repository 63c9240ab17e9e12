"""The sampling rule of `runtime.sampler` as Triton kernels, and the pixels of an image.

`draw_kernel` turns the logits of one pass into tokens and confidences, `select_kernel` picks the
least confident tokens for the next masked pass. Settings, seeds and image numbers are read from the
device, so that a captured CUDA graph can be replayed with others.

They choose what the NumPy rule chooses from the same logits. Sums of the nucleus are exact to 2^-45
here, where NumPy adds float32 probabilities one after the other; a token at the very edge of the
nucleus can therefore fall on the other side.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAX_PASSES = tl.constexpr(256)  # as in runtime.philox
MASK_CFG_RATIO = tl.constexpr(1e-6)  # as in runtime.sampler
MASS_ONE = tl.constexpr(1 << 44)  # probability 1 as an integer
COUNT_BITS = tl.constexpr(16)
COUNT_MASK = tl.constexpr((1 << 16) - 1)


@triton.jit
def _ordered(x):
    """Unsigned integers in the order of the floats, for a search by bits; -0 and 0 are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def _value(key):
    """The float of an integer of `_ordered`."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, ~bits).to(tl.float32, bitcast=True)


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _top_k_edge(keys_V, k):
    """An integer that the k largest keys reach, and no others but equal ones.

    Two bits at a time, until it parts exactly k keys from the rest, or is the k-th largest key.
    """
    edge, shift = tl.full([], 0, tl.uint32), tl.full([], 30, tl.int32)
    reached = tl.full([], -1, tl.int32)
    while (shift >= 0) & (reached != k):
        unit = tl.full([], 1, tl.uint32) << shift.to(tl.uint32)
        one_V = (keys_V >= edge + unit).to(tl.int32)
        two_V = (keys_V >= edge + 2 * unit).to(tl.int32)
        three_V = (keys_V >= edge + 3 * unit).to(tl.int32)
        ones_and_twos, threes = tl.reduce((one_V + (two_V << 16), three_V), 0, _add_two)
        ones, twos = ones_and_twos & 0xFFFF, ones_and_twos >> 16
        passed = (ones >= k).to(tl.uint32) + (twos >= k).to(tl.uint32) + (threes >= k).to(tl.uint32)
        edge += unit * passed
        reached = tl.where(passed == 1, ones, reached)
        reached = tl.where(passed == 2, twos, reached)
        reached = tl.where(passed == 3, threes, reached)
        shift -= 2
    return edge


@triton.jit
def _nucleus_edge(keys_V, is_kept_V, p_V, outside):
    """The smallest kept key whose mass, together with that of all smaller ones, exceeds `outside`;
    the largest if there is none.

    Two bits at a time, among the bits in which kept keys differ, until one key is left. Masses are
    integers, multiples of 1 / MASS_ONE, above a count of keys.
    """
    largest = tl.max(keys_V, axis=0)
    smallest = tl.min(tl.where(is_kept_V, keys_V, 0xFFFFFFFF), axis=0)
    shift = tl.full([], 30, tl.int32)
    while (shift > 0) & (((smallest ^ largest) >> shift.to(tl.uint32)) == 0):
        shift -= 2
    # the search goes on in [edge, edge + last]; `below` and `end` are the masses up to its ends
    last = (tl.full([], 4, tl.uint32) << shift.to(tl.uint32)) - 1
    edge = smallest & ~last
    mass_V = (p_V.to(tl.float64) * MASS_ONE + 0.5).to(tl.int64)
    mass_V = tl.where(is_kept_V, (mass_V << COUNT_BITS) + 1, 0)
    limit = (outside.to(tl.float64) * MASS_ONE).to(tl.int64)
    below, end = tl.full([], 0, tl.int64), tl.sum(mass_V, axis=0)
    while (shift >= 0) & (((end - below) & COUNT_MASK) > 1):
        unit = tl.full([], 1, tl.uint32) << shift.to(tl.uint32)
        one, two, three = tl.reduce(
            (
                tl.where(keys_V < edge + unit, mass_V, 0),
                tl.where(keys_V < edge + 2 * unit, mass_V, 0),
                tl.where(keys_V < edge + 3 * unit, mass_V, 0),
            ),
            0,
            _add_three,
        )
        if (one >> COUNT_BITS) > limit:
            end = one
        else:
            below, edge = one, edge + unit
            if (two >> COUNT_BITS) > limit:
                end = two
            else:
                below, edge = two, edge + unit
                if (three >> COUNT_BITS) > limit:
                    end = three
                else:
                    below, edge = three, edge + unit
        last = unit - 1
        shift -= 2
    is_candidate_V = is_kept_V & (keys_V >= edge) & (keys_V - edge <= last)
    found = tl.max(tl.where(is_candidate_V, keys_V, 0), axis=0)
    return tl.where(found == 0, largest, found)


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
    BLOCK_V: tl.constexpr, VOCAB_STEP: tl.constexpr,
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
        VOCAB_STEP: divides the vocabulary.
    """
    vocab = vocab // VOCAB_STEP * VOCAB_STEP  # for the compiler, which then reads several at once
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

    keys_V = tl.where(is_token_V, _ordered(logits_V), 0)
    is_kept_V = is_token_V
    if (top_k > 0) & (top_k < vocab):
        is_kept_V = is_kept_V & (keys_V >= _top_k_edge(keys_V, top_k))
    # from here on, logits are read from the keys, which saves registers
    max_logit = _value(tl.max(keys_V, axis=0))
    if top_p > 0:
        p_V = tl.where(is_kept_V, tl.exp(_value(keys_V) - max_logit), 0.0)
        p_V = (p_V.to(tl.float64) / tl.sum(p_V.to(tl.float64))).to(tl.float32)
        outside = (1.0 - top_p).to(tl.float32)
        edge = _nucleus_edge(keys_V, is_kept_V, p_V, outside)
        is_edge_V = is_kept_V & (keys_V == edge)
        is_kept_V = is_kept_V & (keys_V >= edge)
        num_edge = tl.sum(is_edge_V.to(tl.int32))
        if num_edge > 1:
            # of equal tokens as many go as fit, in vocabulary order; the last of all stays
            below = tl.sum(tl.where(keys_V < edge, p_V, 0.0).to(tl.float64))
            at_edge_V = tl.where(is_edge_V, p_V, 0.0).to(tl.float64)
            sums_V = below + tl.cumsum(at_edge_V, axis=0)
            is_last_V = (tl.cumsum(is_edge_V.to(tl.int32), axis=0) == num_edge) & (
                edge == tl.max(keys_V, axis=0)
            )
            is_kept_V = is_kept_V & ((is_edge_V == 0) | (sums_V > outside) | is_last_V)

    less_V = _value(keys_V).to(tl.float64) - max_logit.to(tl.float64)
    p_V = tl.where(is_kept_V, tl.exp(less_V), 0.0)
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
