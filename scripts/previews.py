"""The reconstruction after every scale, as a strip of pictures or as an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from runtime.trajectory import ScaleEvent
from scripts.images import grid, write_grid

SCALE_MS, LAST_MS = 350, 1500
ANIMATED = (".gif", ".webp")


class Previews:
    """Collects previews as a per-scale callback, if any are wanted.

    Args:
        strip: file for one row per image, one column per scale.
        animation: file for one frame per scale, GIF or WebP.

    Raises:
        ValueError: the animation's suffix is neither.
    """

    def __init__(self, strip: Path | None, animation: Path | None) -> None:
        if animation is not None and animation.suffix.lower() not in ANIMATED:
            raise ValueError(
                f"{animation}: animations are {' or '.join(ANIMATED)}; use one of them"
            )
        self.strip, self.animation = strip, animation
        self._scales: dict[int, list[np.ndarray]] = {}

    @property
    def are_wanted(self) -> bool:
        return self.strip is not None or self.animation is not None

    def __call__(self, event: ScaleEvent) -> None:
        if self.are_wanted:
            self._scales.setdefault(event.scale_idx, []).append(event.preview())

    def images(self) -> np.ndarray:
        """Previews of all images at all scales so far, (B, S, H, W, 3) uint8."""
        return np.stack([np.concatenate(parts) for parts in self._scales.values()], axis=1)

    def write(self) -> None:
        """Writes the files that are wanted.

        Raises:
            ValueError: a file cannot be written.
        """
        if self.strip is not None:
            images = self.images()
            write_grid(images.reshape(-1, *images.shape[2:]), self.strip, images.shape[1])
        if self.animation is not None:
            frames = [Image.fromarray(grid(scale)) for scale in self.images().swapaxes(0, 1)]
            durations = [SCALE_MS] * (len(frames) - 1) + [LAST_MS]
            try:
                frames[0].save(
                    self.animation,
                    save_all=True,
                    append_images=frames[1:],
                    duration=durations,
                    loop=0,
                )
            except OSError as error:
                raise ValueError(
                    f"{self.animation}: cannot write the animation ({error})"
                ) from error
