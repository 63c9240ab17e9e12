"""Part images of the demo data, packed in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLORS = ("blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
CLASS_NAMES = (*(f"robot-{color}" for color in COLORS), "cyborg", "robohead", "cat")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPack:
    """Premultiplied parts of all classes, and backgrounds.

    Attributes:
        parts: (parts, side, side, 4) uint8, colour already multiplied by alpha; part 0 is empty.
        slots: (classes, slots, 2) int32: first part and number of parts of every slot, painted in
            order; unused slots hold the empty part.
        backgrounds: (backgrounds, side, side, 3) uint8.
    """

    parts: np.ndarray
    slots: np.ndarray
    backgrounds: np.ndarray

    def __post_init__(self) -> None:
        if self.parts.shape[1:3] != self.backgrounds.shape[1:3]:
            raise ValueError(
                f"parts are {self.parts.shape[1:3]} px, backgrounds {self.backgrounds.shape[1:3]}; "
                "pack both at the same size"
            )

    @property
    def side_px(self) -> int:
        return self.parts.shape[1]

    @property
    def num_classes(self) -> int:
        return self.slots.shape[0]

    def save(self, path: Path) -> None:
        np.savez_compressed(path, parts=self.parts, slots=self.slots, backgrounds=self.backgrounds)

    @classmethod
    def load(cls, path: Path) -> PartPack:
        with np.load(path) as arrays:
            return cls(
                parts=arrays["parts"], slots=arrays["slots"], backgrounds=arrays["backgrounds"]
            )
