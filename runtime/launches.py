"""Launches of the plugin library's kernels, in order: what plans consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.stages import align

KernelTable = Mapping[str, Mapping[str, Any]]
"""By name of the kernel: how it is launched, see `aot.py` in the folders of `plugins_trt`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One launch.

    Attributes:
        kernel: its name.
        grid: numbers of programs.
        pointers: by parameter, the name of a place: of `LaunchPlan.offsets`, of a weight, or of an
            input or output.
        scalars: by parameter.
    """

    kernel: str
    grid: tuple[int, ...]
    pointers: dict[str, str]
    scalars: dict[str, int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """All launches of one profile.

    Attributes:
        offsets: places in scratch memory.
        nbytes: size of the scratch memory.
        num_arrivals: int32 counters at the place ARRIVALS, zero before and after every launch.
    """

    steps: tuple[Step, ...]
    offsets: dict[str, int]
    nbytes: int
    num_arrivals: int = 0


ARRIVALS = "arrivals"


@dataclass(slots=True)
class Scratch:
    """Places in scratch memory, each as large as its largest use."""

    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, nbytes: int) -> str:
        """Reserves a place; returns its name."""
        self.sizes[place] = max(self.sizes.get(place, 0), nbytes)
        return place

    def lay_out(self) -> tuple[dict[str, int], int]:
        """Offsets of the places, one behind the other, and the size of all."""
        offsets, end = {}, 0
        for place, nbytes in self.sizes.items():
            offsets[place] = end
            end += align(nbytes)
        return offsets, end


def blocks(size: int, block: int) -> int:
    """Blocks that cover a size."""
    return -(-size // block)
