"""The low-resolution image of a Hi-MAR generation: its decoded pivots, resized."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SMALL_SIDE_PX = 64
BICUBIC = -0.75  # the kernel's coefficient a


@lru_cache
def bicubic_matrix(side_in: int, side_out: int) -> np.ndarray:
    """Resizing of one axis, (side_out, side_in) float64: half-pixel centres, no antialiasing."""
    a = BICUBIC
    matrix = np.zeros((side_out, side_in))
    centres = (np.arange(side_out) + 0.5) * side_in / side_out - 0.5
    base = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        d = np.abs(centres - (base + tap))
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        column = np.clip(base + tap, 0, side_in - 1)
        np.add.at(matrix, (np.arange(side_out), column), np.where(d <= 1, near, far))
    return matrix


def to_small(image_B3HW: np.ndarray) -> np.ndarray:
    """Images (B, 3, H, H) resized to (B, 3, 64, 64) float32."""
    resize = bicubic_matrix(image_B3HW.shape[-1], SMALL_SIDE_PX)
    return (resize @ image_B3HW @ resize.T).astype(np.float32)
