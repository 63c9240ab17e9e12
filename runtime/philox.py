"""Counter-based uniform numbers: the same for any backend, batch size, batch slot or machine.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one block of
output per number:

    key      = (seed mod 2^32, seed div 2^32)
    counter  = (token position, 256 * scale + pass, image index mod 2^32, image index div 2^32)
    uniform  = (x0 + 2^32 * x1) div 2^11 * 2^-53          in [0, 1), from the output words x0..x3

Pass 0 is the next-scale pass of a scale, pass j its j-th masked pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10
LOW, WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
MAX_PASSES = 256


def philox_4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Output blocks of Philox-4x32-10.

    Args:
        counter: (..., 4) integers below 2^32.
        key: two integers below 2^32.

    Returns:
        (..., 4) uint64 array of 32-bit words.
    """
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> WORD) ^ c1 ^ k0, p1 & LOW, (p0 >> WORD) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return np.stack((c0, c1, c2, c3), axis=-1)


def uniforms(
    seed: int, image_index: Sequence[int], scale_idx: int, pass_idx: int, length: int
) -> np.ndarray:
    """Uniform numbers in [0, 1) of one draw, (B, length) float64.

    Args:
        seed: 0 .. 2^64 - 1.
        image_index: one per image, 0 .. 2^64 - 1; an image's numbers depend on nothing else of the
            batch.
        scale_idx: the scale.
        pass_idx: 0 = next-scale pass, j = j-th masked pass.
        length: tokens.
    """
    if not 0 <= pass_idx < MAX_PASSES:
        raise ValueError(f"at most {MAX_PASSES - 1} masked passes per scale, got pass {pass_idx}")
    return unit_interval(
        blocks(seed, image_index, MAX_PASSES * scale_idx + pass_idx, np.arange(length)[None])
    )


def blocks(seed: int, image_index: Sequence[int], second: int, first: np.ndarray) -> np.ndarray:
    """Output blocks, (B, …, 4) words.

    Args:
        seed: 0 .. 2^64 - 1, the key.
        image_index: (B,), words 2 and 3 of the counter.
        second: word 1 of the counter.
        first: word 0 of the counter, (B, …), or (1, …) for every image the same.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in 0..2^64-1, got {seed}")
    index = np.asarray(image_index, dtype=np.uint64).reshape(-1, *([1] * (first.ndim - 1)))
    counter = np.empty((len(index), *first.shape[1:], 4), np.uint64)
    for word, values in enumerate((first, second, index & LOW, index >> WORD)):
        counter[..., word] = values
    return philox_4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def unit_interval(words: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, of 53 bits of the first two words of each block."""
    return ((words[..., 0] | (words[..., 1] << WORD)) >> np.uint64(11)) * 2.0**-53
