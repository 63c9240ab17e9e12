"""The edits that the demo checkpoint is shown and measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.config import SamplingConfig
from runtime.editing import EditConfig
from runtime.pipeline import HMARPipeline
from runtime.schedule import parse_schedule

SIDE = 128
GREY = 128
FEATHER_PX = 6
VARIANTS = {
    "published": EditConfig(method="published"),
    "known": EditConfig(),
    "known, keep_scales 3": EditConfig(keep_scales=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A region, and whether it is to show its own class or another.

    Attributes:
        box: left, top, right, bottom in pixels.
        keeps_box: regenerate around the box, rather than in it.
        class_offset: the target is the given class plus this, modulo the number of classes.
    """

    name: str
    box: tuple[int, int, int, int]
    keeps_box: bool = False
    class_offset: int = 0

    @property
    def keep(self) -> np.ndarray:
        """The keep mask, (SIDE, SIDE) boolean."""
        x0, y0, x1, y1 = self.box
        inside = np.zeros((SIDE, SIDE), np.bool_)
        inside[y0:y1, x0:x1] = True
        return inside if self.keeps_box else ~inside

    def given(self, images: np.ndarray) -> np.ndarray:
        """What is edited: the images (B, SIDE, SIDE, 3), or their boxes with the edges continued.

        What lies around a box is so unknown to all methods, as around a picture that is padded.
        """
        if not self.keeps_box:
            return images
        x0, y0, x1, y1 = self.box
        around = ((0, 0), (y0, SIDE - y1), (x0, SIDE - x1), (0, 0))
        return np.pad(images[:, y0:y1, x0:x1], around, mode="edge")

    def targets(self, labels: Sequence[int], num_classes: int) -> list[int]:
        """The classes that the edited pictures are to show."""
        return [(int(label) + self.class_offset) % num_classes for label in labels]


TASKS = (
    Task(name="inpainting", box=(32, 16, 96, 80)),
    Task(name="outpainting", box=(26, 10, 102, 118), keeps_box=True),
    Task(name="class", box=(20, 8, 108, 128), class_offset=3),
)
VARIATIONS = {
    "keep_scales 4": EditConfig(keep_scales=4),
    "keep_scales 6": EditConfig(keep_scales=6),
    "keep_scales 8": EditConfig(keep_scales=8),
    "refined, last 3": EditConfig(keep_scales=7, refine_rounds=3),
}


def shown(images: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The images (B, H, W, 3) where `keep` is True, the rest grey."""
    return np.where(keep[..., None], images, np.uint8(GREY))


def sampling_for(pipeline: HMARPipeline, edit: EditConfig) -> SamplingConfig:
    """The bundle's settings; to refine, with the schedule `quality`."""
    if not edit.refine_rounds:
        return pipeline.defaults
    schedule = parse_schedule("quality", None, pipeline.manifest.hmar.patch_nums)
    return replace(pipeline.defaults, mask_schedule=schedule)
