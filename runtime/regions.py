"""Kept pixels and kept tokens: how a mask of pixels becomes masks of tokens, and back into a seam.

Masks are boolean, True = keep; (B, H, W) for pixels, (B, pn*pn) for the tokens of a scale.
"""

from __future__ import annotations

import numpy as np

WHOLE_SCALE_TOKENS = 3  # of the published procedure: scales of so few tokens are kept entirely


def kept_in_cells(keep: np.ndarray, cells: int, axis: int) -> np.ndarray:
    """The mask with `cells` entries along an axis, True where all that a cell touches is kept.

    Cell i of n touches the entries floor(i * side / n) to ceil((i + 1) * side / n) - 1.
    """
    side = keep.shape[axis]
    edges = np.arange(cells + 1) * side
    first, end = edges[:-1] // cells, -(-edges[1:] // cells)
    zero = np.zeros_like(keep.take([0], axis), dtype=np.int32)
    lost = np.concatenate((zero, np.cumsum(~keep, axis=axis, dtype=np.int32)), axis=axis)
    return lost.take(end, axis) == lost.take(first, axis)


def known_tokens(keep_BHW: np.ndarray, pn: int) -> np.ndarray:
    """Tokens (B, pn*pn) of one scale whose whole cell is kept."""
    return kept_in_cells(kept_in_cells(keep_BHW, pn, 1), pn, 2).reshape(len(keep_BHW), -1)


def published_tokens(keep_BPP: np.ndarray, pn: int) -> np.ndarray:
    """Tokens (B, pn*pn) that the procedure published for VAR keeps at one scale.

    The mask of the finest grid is resized bilinearly (half-pixel centres, no antialiasing) and
    kept where it exceeds 1/2. Scales of at most `WHOLE_SCALE_TOKENS` tokens are kept entirely.

    Some cells are at exactly 1/2 on paper, and rounding decides: where 13 cells lie over 16, the
    middle one is between two. The float32 steps here are PyTorch's, which rounds a cell's position
    once, as a fused product and sum.
    """
    B, P, _ = keep_BPP.shape
    if pn * pn <= WHOLE_SCALE_TOKENS:
        return np.ones((B, pn * pn), np.bool_)
    scale = np.float64(np.float32(P) / np.float32(pn))
    position = (scale * (np.arange(pn) + 0.5) - 0.5).astype(np.float32)
    low = position.astype(np.int64)
    high, upper = np.minimum(low + 1, P - 1), position - low.astype(np.float32)
    lower, value = np.float32(1) - upper, keep_BPP.astype(np.float32)
    along_rows = lower * value[:, :, low] + upper * value[:, :, high]
    resized = lower[:, None] * along_rows[:, low] + upper[:, None] * along_rows[:, high]
    return (resized > 0.5).reshape(B, -1)


def spread(mask_BHW: np.ndarray, radius: int) -> np.ndarray:
    """True wherever the mask is True within `radius` rows and columns."""
    for axis in (1, 2):
        before = np.zeros(mask_BHW.ndim, np.int64)
        before[axis] = radius
        padded = np.pad(mask_BHW, [(n, n) for n in before])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis)
        mask_BHW = np.any(windows, axis=-1)
    return mask_BHW


def blend(
    edited: np.ndarray, original: np.ndarray, keep_BHW: np.ndarray, feather_px: int
) -> np.ndarray:
    """Kept pixels of the original, the others edited; images (B, H, W, 3) uint8.

    The seam lies inside the edited region: the original's weight is 1 where pixels are kept, falls
    linearly over `feather_px` pixels (counted along rows, columns or diagonals), then is 0.
    """
    reached = np.zeros(keep_BHW.shape, np.float32)
    for radius in range(feather_px + 1):
        reached += spread(keep_BHW, radius)
    weight = reached[..., None] / (feather_px + 1)
    return np.rint(weight * original + (1 - weight) * edited).astype(np.uint8)
