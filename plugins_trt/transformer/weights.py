"""Weights as the kernels read them; NumPy only, since the runtime imports it."""

from __future__ import annotations

import numpy as np


def split(weights: np.ndarray) -> np.ndarray:
    """Float32 weights (depth, width) as float16 (2 * depth, width): rounded, and what that lacks.

    Together they have 22 bits of precision, or an error of 3e-8 where that is more.
    """
    high = weights.astype(np.float16)
    low = (weights - high.astype(np.float32)).astype(np.float16)
    return np.concatenate((high, low))
