"""Where the randomness of a Hi-MAR generation comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime.himar_schedule import Phase
from runtime.normals import normals, orders


class HiMARDraws(Protocol):
    """Orders and noise; `for_images` narrows it to a part of a batch of `total` images."""

    def orders(self, phase: Phase, length: int) -> np.ndarray:
        """Per image a permutation of the phase's positions, (B, length) int64.

        Tokens become known from its end.
        """

    def noise(
        self, phase: Phase, step: int, draw: int, positions_Bn: np.ndarray, channels: int
    ) -> np.ndarray:
        """Standard normal (B, n, channels) float32; draws as in `runtime.diffusion.Noise`."""

    def for_images(self, images: slice, total: int) -> HiMARDraws: ...


class SeededHiMARDraws:
    """Counter-based numbers, see `runtime.normals`.

    Args:
        seed: 0 .. 2^64 - 1.
        image_index: one per image; together with the seed it names the image's random numbers.
    """

    def __init__(self, seed: int, image_index: Sequence[int]) -> None:
        self.seed, self.image_index = seed, list(image_index)

    def orders(self, phase: Phase, length: int) -> np.ndarray:
        return orders(self.seed, self.image_index, phase, length)

    def noise(
        self, phase: Phase, step: int, draw: int, positions_Bn: np.ndarray, channels: int
    ) -> np.ndarray:
        return normals(self.seed, self.image_index, phase, step, draw, positions_Bn, channels)

    def for_images(self, images: slice, total: int) -> SeededHiMARDraws:
        return SeededHiMARDraws(self.seed, self.image_index[images])
