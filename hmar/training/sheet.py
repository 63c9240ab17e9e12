"""Pictures side by side in one PNG file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def save_sheet(image_B3HW: Tensor, columns: int, path: Path) -> None:
    """Writes images in [-1, 1] row by row."""
    from PIL import Image

    B, _, H, W = image_B3HW.shape
    rows = -(-B // columns)
    sheet = image_B3HW.new_full((rows * columns, 3, H, W), -1.0)
    sheet[:B] = image_B3HW
    sheet = sheet.view(rows, columns, 3, H, W).permute(0, 3, 1, 4, 2).reshape(rows * H, columns * W, 3)
    pixels = ((sheet.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(path)
