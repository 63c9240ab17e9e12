"""Counter-based normal numbers and orders of Hi-MAR, keyed as the uniforms of `runtime.philox`.

    key      = (seed mod 2^32, seed div 2^32)
    counter  = (place, 2^28 * stream + 1024 * step + draw, image index mod 2^32, … div 2^32)

Streams 0 and 1 are the noise of pivots and of dense tokens, 2 and 3 their orders. In an order,
`place` is the position in the token's grid, step and draw are 0, and the positions are sorted by
their uniforms. Noise has one block of output words x0..x3 per four channels of a token,
`place = position * ceil(C / 4) + channel div 4`, which Box and Muller's rule turns into four
numbers:

    u_i = (x_i + 1/2) * 2^-32
    z_0, z_1 = sqrt(-2 ln u_0) * (cos 2 pi u_1, sin 2 pi u_1),  z_2, z_3 likewise of u_2 and u_3

in float64, rounded to float32. Draw 0 of a step is the first state, draw j + 1 goes into the j-th
reverse step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.himar_schedule import Phase
from runtime.philox import blocks, unit_interval

MAX_DRAWS = 1024  # of a step; a sampling has at most 1000
MAX_STEPS = 1 << 18
WORDS = 4
NOISE: dict[Phase, int] = {"pivot": 0, "dense": 1}
ORDER: dict[Phase, int] = {"pivot": 2, "dense": 3}


def second_word(stream: int, step: int, draw: int) -> int:
    """Word 1 of the counter."""
    return (stream << 28) + MAX_DRAWS * step + draw


def normals(
    seed: int,
    image_index: Sequence[int],
    phase: Phase,
    step: int,
    draw: int,
    positions_Bn: np.ndarray,
    channels: int,
) -> np.ndarray:
    """Standard normal numbers of one draw, (B, n, channels) float32.

    Args:
        seed: 0 .. 2^64 - 1.
        image_index: one per image, 0 .. 2^64 - 1; an image's numbers depend on nothing else of the
            batch.
        positions_Bn: of the tokens in the grid of the phase.
    """
    per_token = -(-channels // WORDS)
    place = positions_Bn[..., None] * per_token + np.arange(per_token)
    words = blocks(seed, image_index, second_word(NOISE[phase], step, draw), place)
    u = (words + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(u[..., ::2])), 2 * np.pi * u[..., 1::2]
    z = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return z.reshape(*positions_Bn.shape, -1)[..., :channels].astype(np.float32)


def orders(seed: int, image_index: Sequence[int], phase: Phase, length: int) -> np.ndarray:
    """Orders of a phase's positions, (B, length) int64; tokens become known from the end."""
    words = blocks(seed, image_index, second_word(ORDER[phase], 0, 0), np.arange(length)[None])
    return np.argsort(unit_interval(words), axis=1, kind="stable")
