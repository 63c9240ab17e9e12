"""Images as 8-bit pixels."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import trajectory
from runtime.trajectory import to_uint8


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(trajectory.logger, "warning", found.append)
    return found


def test_pixels_are_rounded_and_clipped(warnings: list[str]) -> None:
    image = np.array([-0.2, 0.0, 0.5, 1.0, 1.3], np.float32)
    pixels = to_uint8(np.broadcast_to(image, (1, 3, 1, 5)))
    assert pixels.shape == (1, 1, 5, 3) and pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert not warnings


def test_what_is_no_number_is_black_and_logged(warnings: list[str]) -> None:
    image = np.full((1, 3, 2, 2), 0.2, np.float32)
    image[0, :, 0, 0] = np.nan
    image[0, :, 1, 1] = np.inf
    pixels = to_uint8(image)
    assert pixels[0, :, :, 0].tolist() == [[0, 51], [51, 255]]
    assert len(warnings) == 1 and "range of the bundle's precision" in warnings[0]
