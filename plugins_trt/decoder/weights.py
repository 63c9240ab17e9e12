"""Weights as the kernels read them; NumPy only, since the runtime imports it."""

from __future__ import annotations

import numpy as np


def channels_last(weights: np.ndarray) -> np.ndarray:
    """Weights (Cout, Cin, side, side), as checkpoints hold them, as (Cout, side, side, Cin)."""
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1))


def fold_upsampling(weights: np.ndarray) -> np.ndarray:
    """Four convolutions with 2 x 2 taps that do what upsampling and one with 3 x 3 taps do.

    Args:
        weights: (Cout, 3, 3, Cin), applied after doubling the sides by nearest neighbour.

    Returns:
        (4, Cout, 2, 2, Cin), by `2 * (row % 2) + column % 2` of the output pixel.
    """
    # taps of an even row read the pixel row before, and twice the row itself; of an odd one, twice
    # the row itself, and the one after
    sums = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], weights.dtype)
    folded = np.einsum("pik,qjl,nklc->pqnijc", sums, sums, weights)
    return np.ascontiguousarray(folded.reshape(4, *folded.shape[2:]))


def prepare(weights: np.ndarray, *, upsamples: bool) -> np.ndarray:
    """Weights of a layer, as checkpoints hold them, in the layout and type that kernels read.

    Args:
        weights: (Cout, Cin, side, side) of a convolution, else of one dimension.
        upsamples: whether the sides are doubled before it.

    Returns:
        float16 for a convolution, float32 else.
    """
    if weights.ndim == 1:
        return weights.astype(np.float32)
    last = channels_last(weights)
    if upsamples:
        last = fold_upsampling(last.astype(np.float32))
    return last.astype(np.float16)
