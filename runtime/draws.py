"""Where the randomness of a generation comes from: seeds, recorded uniforms, or none at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.philox import uniforms
from runtime.sampler import draw_argmax, draw_inverse_cdf


class Draws(Protocol):
    """Chooses tokens of a pass; `for_images` narrows it to a part of a batch of `total` images."""

    def __call__(self, scale_idx: int, pass_idx: int, p_BlV: np.ndarray) -> np.ndarray: ...

    def for_images(self, images: slice, total: int) -> Draws: ...


class SeededDraws:
    """Inverse-CDF draws from counter-based uniforms.

    Args:
        seed: 0 .. 2^64 - 1.
        image_index: one per image; together with the seed it names the image's random numbers.
    """

    def __init__(self, seed: int, image_index: Sequence[int]) -> None:
        self.seed, self.image_index = seed, list(image_index)

    def __call__(self, scale_idx: int, pass_idx: int, p_BlV: np.ndarray) -> np.ndarray:
        u = uniforms(self.seed, self.image_index, scale_idx, pass_idx, p_BlV.shape[1])
        return draw_inverse_cdf(p_BlV, u)

    def for_images(self, images: slice, total: int) -> SeededDraws:
        return SeededDraws(self.seed, self.image_index[images])


class ArgmaxDraws:
    """The most probable token everywhere."""

    def __call__(self, scale_idx: int, pass_idx: int, p_BlV: np.ndarray) -> np.ndarray:
        return draw_argmax(p_BlV)

    def for_images(self, images: slice, total: int) -> ArgmaxDraws:
        return self


class RecordedDraws:
    """Inverse-CDF draws from given uniforms, keyed `s{k}_ns_u` and `s{k}_m{j}_u`, each (B, l)."""

    def __init__(self, recorded: Mapping[str, np.ndarray], source: str = "draws") -> None:
        self.recorded, self.source = dict(recorded), source

    @classmethod
    def load(cls, path: Path) -> RecordedDraws:
        """Reads the uniforms of an `.npz` file; other arrays are ignored.

        Raises:
            ValueError: the file is not an `.npz` file or holds no uniforms.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                recorded = {n: data[n] for n in data.files if re.fullmatch(r"s\d+_(ns|m\d+)_u", n)}
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not an .npz file of uniforms ({error})") from error
        if not recorded:
            raise ValueError(
                f"{path}: holds no uniforms; expected arrays named s0_ns_u, s1_ns_u, s1_m1_u, …"
            )
        return cls(recorded, str(path))

    def __call__(self, scale_idx: int, pass_idx: int, p_BlV: np.ndarray) -> np.ndarray:
        name = f"s{scale_idx}_ns_u" if pass_idx == 0 else f"s{scale_idx}_m{pass_idx}_u"
        if name not in self.recorded:
            raise ValueError(
                f"{self.source}: no uniforms {name!r}; the schedule asks for this pass"
            )
        u = self.recorded[name]
        if u.shape != p_BlV.shape[:2]:
            raise ValueError(
                f"{self.source}: {name} is {u.shape}, expected {p_BlV.shape[:2]} (images, tokens)"
            )
        if not ((u >= 0) & (u < 1)).all():
            raise ValueError(f"{self.source}: {name} has values outside [0, 1)")
        return draw_inverse_cdf(p_BlV, u.astype(np.float64))

    def for_images(self, images: slice, total: int) -> RecordedDraws:
        for name, u in self.recorded.items():
            if len(u) != total:
                raise ValueError(
                    f"{self.source}: {name} is for {len(u)} images, got {total} labels"
                )
        return RecordedDraws({n: u[images] for n, u in self.recorded.items()}, self.source)
