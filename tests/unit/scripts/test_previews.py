"""Strips and animations of what each scale adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.trajectory import ScaleEvent
from scripts.previews import LAST_MS, SCALE_MS, Previews


def events(previews: Previews, parts: tuple[int, ...] = (2, 1), scales: int = 3) -> None:
    """A request in parts: image i is i, plus 50 times the scale."""
    start = 0
    for size in parts:
        for k in range(scales):
            values = np.arange(start, start + size, dtype=np.uint8) + np.uint8(50 * k)
            shown = np.broadcast_to(values[:, None, None, None], (size, 4, 4, 3))
            previews(
                ScaleEvent(
                    scale_idx=k,
                    pn=k + 1,
                    num_scales=scales,
                    images=slice(start, start + size),
                    tokens=np.zeros((size, (k + 1) ** 2), np.int32),
                    preview=lambda shown=shown: shown,
                )
            )
        start += size


def test_a_strip_has_a_row_per_image_and_a_column_per_scale(tmp_path: Path) -> None:
    previews = Previews(strip=tmp_path / "strip.png", animation=None)
    events(previews)
    previews.write()
    with Image.open(tmp_path / "strip.png") as image:
        pixels = np.asarray(image)
    assert pixels[::4, ::4, 0].tolist() == [[0, 50, 100], [1, 51, 101], [2, 52, 102]]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_has_a_frame_per_scale(tmp_path: Path, suffix: str) -> None:
    previews = Previews(strip=None, animation=tmp_path / f"a{suffix}")
    events(previews, parts=(1,))
    previews.write()
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.n_frames == 3 and image.size == (4, 4)
        durations = []
        for n in range(3):
            image.seek(n)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [SCALE_MS, SCALE_MS, LAST_MS]


def test_nothing_is_decoded_where_nothing_is_wanted() -> None:
    previews = Previews(strip=None, animation=None)
    event = ScaleEvent(
        scale_idx=0, pn=1, num_scales=1, images=slice(0, 1), tokens=np.zeros((1, 1)), preview=exit
    )
    previews(event)
    previews.write()
    assert not previews.are_wanted


def test_other_animations_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.mp4: animations are \.gif or \.webp"):
        Previews(strip=None, animation=tmp_path / "a.mp4")
