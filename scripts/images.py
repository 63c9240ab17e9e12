"""Image files for the scripts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image


def check_writable(path: Path) -> None:
    """Raises ValueError early if a file cannot be written, rather than after the work is done."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file name such as {path / 'grid.png'}")


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images (B, H, W, 3) side by side, as square as possible: one (H', W', 3) image."""
    B, H, W, _ = images.shape
    columns = columns or math.ceil(math.sqrt(B))
    rows = math.ceil(B / columns)
    sheet = np.full((rows * H, columns * W, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * H : (y + 1) * H, x * W : (x + 1) * W] = image
    return sheet


def write_grid(images: np.ndarray, path: Path) -> None:
    """Writes images as one grid.

    Raises:
        ValueError: the suffix names no image format, or the file cannot be written.
    """
    try:
        Image.fromarray(grid(images)).save(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: cannot write the image ({error}); use a suffix such as .png"
        ) from error
