"""Pictures side by side in one PNG file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor


def to_uint8(image_B3HW: Tensor) -> np.ndarray:
    """Images in [-1, 1] as pixels, (B, H, W, 3)."""
    pixels = ((image_B3HW.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def save_sheet(image_B3HW: Tensor, columns: int, path: Path) -> None:
    """Writes images in [-1, 1] row by row."""
    pixels = to_uint8(image_B3HW)
    B, H, W, _ = pixels.shape
    rows = -(-B // columns)
    sheet = np.zeros((rows * columns, H, W, 3), np.uint8)
    sheet[:B] = pixels
    sheet = sheet.reshape(rows, columns, H, W, 3).swapaxes(1, 2).reshape(rows * H, columns * W, 3)
    path.write_bytes(png(sheet))


def png(pixels: np.ndarray) -> bytes:
    """An RGB image (H, W, 3) uint8 as a PNG file; the package has no imaging library."""
    H, W, _ = pixels.shape
    lines = np.concatenate((np.zeros((H, 1), np.uint8), pixels.reshape(H, -1)), axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)
