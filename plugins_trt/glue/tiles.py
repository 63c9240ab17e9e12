"""How the kernels divide their work; functions of sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COLUMNS_BLOCK = 256
PIXELS_BLOCK = 16
MODULATION_TILE = {"BLOCK_N": 64, "BLOCK_K": 64}
MODULATION_ROWS = (16, 64)  # of a program, by the number of rows
EMBED_TILE = {"BLOCK_M": 16, "BLOCK_N": 64}
WINDOWS = (8, 16)  # positions along an axis that a cell may average


def window(side: int, reduced: int) -> int:
    """Most positions along an axis that a cell averages, when `side` becomes `reduced`."""
    return max(-(-(i + 1) * side // reduced) - i * side // reduced for i in range(reduced))


def bicubic_taps(side: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cells enter a pixel when `source` cells become `side`, and how much of each.

    Convolution kernel with a = -0.75 (Keys 1981), half-pixel centres, edges clamped, no
    antialiasing; the same cells where nothing is enlarged.

    Returns:
        (side, 4) int32 and (side, 4) float32.
    """
    centres = (np.arange(side) + 0.5) * source / side - 0.5
    cells = np.floor(centres)[:, None] + np.arange(-1, 3)
    shares = keys_kernel(-0.75)(np.abs(centres[:, None] - cells))
    return cells.clip(0, source - 1).astype(np.int32), shares.astype(np.float32)


def keys_kernel(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Weight of a cell by its distance, at most 2."""

    def weight(t: np.ndarray) -> np.ndarray:
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        return np.where(t <= 1, near, np.where(t < 2, a * (t**3 - 5 * t**2 + 8 * t - 4), 0.0))

    return weight
