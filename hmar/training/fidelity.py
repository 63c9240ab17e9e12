"""How close samples are to real pictures as a set, and whether they copy or compose."""

from __future__ import annotations

import numpy as np

BORDER_PX = 10  # of 128: characters rarely reach into this frame above the shoulders


def frechet_distance(a_NF: np.ndarray, b_NF: np.ndarray) -> float:
    """Fréchet distance between normal distributions fitted to two sets of features.

    `|mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2))` with covariances A and B.
    """
    if min(len(a_NF), len(b_NF)) < 2:
        raise ValueError(f"a covariance needs two pictures, got {len(a_NF)} and {len(b_NF)}")
    a, b = a_NF.astype(np.float64), b_NF.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # the eigenvalues of A B are those of the symmetric A^(1/2) B A^(1/2)
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def nearest_distances(
    image_NHWC: np.ndarray, reference_MHWC: np.ndarray, side: int = 32
) -> np.ndarray:
    """Root mean square pixel distance (0..255) of every picture to its nearest reference, (N,).

    Pictures are averaged down to `side` first.
    """
    a, b = _reduced(image_NHWC, side), _reduced(reference_MHWC, side)
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(squared.min(axis=1).clip(0) / a.shape[1])


def nearest_backgrounds(image_NHWC: np.ndarray, backgrounds_MHWC: np.ndarray) -> np.ndarray:
    """Which background every picture has, by the frame around the upper half, (N,)."""
    side = image_NHWC.shape[1]
    frame = np.zeros((side, side), bool)
    frame[:BORDER_PX] = True
    frame[: side // 2, :BORDER_PX] = frame[: side // 2, -BORDER_PX:] = True
    best = np.full(len(image_NHWC), np.inf)
    chosen = np.zeros(len(image_NHWC), int)
    pixels = image_NHWC[:, frame].astype(np.float32)
    for i, background in enumerate(backgrounds_MHWC):
        for candidate in (background, background[:, ::-1]):
            # clipped, so that a part reaching into the frame counts little
            distance = np.abs(pixels - candidate[frame]).clip(max=40).mean(axis=(1, 2))
            chosen, best = np.where(distance < best, i, chosen), np.minimum(distance, best)
    return chosen


def _reduced(image_NHWC: np.ndarray, side: int) -> np.ndarray:
    N, H, W, C = image_NHWC.shape
    cell = H // side
    centred = image_NHWC.astype(np.float32) - 127.5  # small numbers keep the difference exact
    cells = centred.reshape(N, side, cell, W // cell, cell, C)
    return cells.mean(axis=(2, 4)).reshape(N, -1)
