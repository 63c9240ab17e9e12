"""Tokens that come from outside a generation: what the scale loop asks about them.

`NothingGiven` is plain generation. `KeptTokens` keeps tokens in every pass. `ReplacedTokens`
is the procedure published for VAR: it leaves the generation alone and replaces what is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


class GivenTokens(Protocol):
    """All arrays are (B, l), one row per image."""

    @property
    def rounds(self) -> int:
        """How often the masked passes of a scale run."""

    def is_open(self, scale_idx: int) -> np.ndarray:
        """True for the tokens that the generation chooses; where there are none, no pass runs."""

    def drawn(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        """What the masked passes go on with, after the next-scale pass drew `tokens`."""

    def committed(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        """What is added to `f_hat`, after all passes of a scale ended with `tokens`."""

    def for_images(self, images: slice) -> GivenTokens:
        """The same for a part of the batch."""


@dataclass(frozen=True, slots=True)
class NothingGiven:
    """Every token is chosen by the generation.

    Attributes:
        batch: number of images.
        lengths: tokens of every scale.
    """

    batch: int
    lengths: Sequence[int]

    @property
    def rounds(self) -> int:
        return 1

    def is_open(self, scale_idx: int) -> np.ndarray:
        return np.ones((self.batch, self.lengths[scale_idx]), np.bool_)

    def drawn(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        return tokens

    def committed(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        return tokens

    def for_images(self, images: slice) -> NothingGiven:
        return replace(self, batch=len(range(*images.indices(self.batch))))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokens:
    """Kept tokens stay in every pass; masked passes predict the others alone.

    Attributes:
        tokens: token maps of all scales, int32.
        kept: the same shapes, boolean.
        starts_given: the other tokens too start as given, and only masked passes change them.
        rounds: how often the masked passes of a scale run.
    """

    tokens: Sequence[np.ndarray]
    kept: Sequence[np.ndarray]
    starts_given: bool = False
    rounds: int = 1

    def is_open(self, scale_idx: int) -> np.ndarray:
        return ~self.kept[scale_idx]

    def drawn(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        is_kept = self.kept[scale_idx] | self.starts_given
        return np.where(is_kept, self.tokens[scale_idx], tokens)

    def committed(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        return tokens

    def for_images(self, images: slice) -> KeptTokens:
        return replace(self, tokens=_part(self.tokens, images), kept=_part(self.kept, images))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedTokens:
    """The generation chooses every token; kept ones are replaced when a scale is committed.

    Attributes:
        tokens: token maps of all scales, int32.
        kept: the same shapes, boolean.
    """

    tokens: Sequence[np.ndarray]
    kept: Sequence[np.ndarray]

    @property
    def rounds(self) -> int:
        return 1

    def is_open(self, scale_idx: int) -> np.ndarray:
        return np.ones_like(self.kept[scale_idx])

    def drawn(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        return tokens

    def committed(self, scale_idx: int, tokens: np.ndarray) -> np.ndarray:
        return np.where(self.kept[scale_idx], self.tokens[scale_idx], tokens)

    def for_images(self, images: slice) -> ReplacedTokens:
        return replace(self, tokens=_part(self.tokens, images), kept=_part(self.kept, images))


def _part(maps: Sequence[np.ndarray], images: slice) -> list[np.ndarray]:
    return [value[images] for value in maps]
