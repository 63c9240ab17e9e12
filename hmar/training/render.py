"""Endless labelled pictures: random parts and backgrounds composited in batches on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hmar.training.parts import PartPack

Split = Literal["train", "held_out", "all"]


def held_out_pairs(num_classes: int, num_backgrounds: int) -> np.ndarray:
    """Class and background pairs kept out of training, boolean (classes, backgrounds).

    Two backgrounds per class, spread so that every background is seen with most classes.
    """
    label = np.arange(num_classes)[:, None]
    background = np.arange(num_backgrounds)[None, :]
    offset = (background - 3 * label) % num_backgrounds
    return (offset == 1) | (offset == num_backgrounds // 2 - 1)


class Renderer:
    """Composites batches of pictures; all randomness comes from one generator.

    Args:
        pack: parts and backgrounds.
        device: where to composite.
        seed: of the generator; two renderers with the same seed and device make the same pictures.
        split: "train" leaves out the held-out pairs, "held_out" draws only them.
        class_weights: how often `batch` draws every class, relative to the others; None = equally.

    Raises:
        ValueError: there is not one positive weight per class.
    """

    def __init__(
        self,
        pack: PartPack,
        device: torch.device,
        seed: int,
        split: Split = "train",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.device, self.num_classes = device, pack.num_classes
        self.generator = torch.Generator(device).manual_seed(seed)
        self.parts_N4hw = torch.from_numpy(pack.parts).to(device).permute(0, 3, 1, 2).contiguous()
        self.backgrounds_N3hw = (
            torch.from_numpy(pack.backgrounds).to(device).permute(0, 3, 1, 2).contiguous()
        )
        self.slots = torch.from_numpy(pack.slots).to(device)
        held_out = held_out_pairs(pack.num_classes, len(pack.backgrounds))
        allowed = {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}[split]
        self.background_weights = torch.from_numpy(allowed).to(device, torch.float32)
        weights = [1.0] * pack.num_classes if class_weights is None else list(class_weights)
        if len(weights) != pack.num_classes or min(weights) <= 0:
            raise ValueError(
                f"class_weights: expected {pack.num_classes} positive numbers, got {weights}"
            )
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self.class_edges = (edges / edges[-1]).to(device)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, side, side) in [-1, 1] and sorted labels (B,), shared out by weight.

        Counts of a class differ by at most one between batches of a size.
        """
        offset = torch.rand(1, generator=self.generator, device=self.device)
        points = (torch.arange(size, device=self.device, dtype=torch.float64) + offset) / size
        labels = torch.searchsorted(self.class_edges, points, right=True)
        return self.render(labels), labels

    def render(self, label_B: Tensor) -> Tensor:
        """Random pictures of the given labels, (B, 3, side, side) in [-1, 1]."""
        B, slots_BS2 = len(label_B), self.slots[label_B]
        u_BS = torch.rand(slots_BS2.shape[:2], generator=self.generator, device=self.device)
        part_BS = slots_BS2[..., 0] + (u_BS * slots_BS2[..., 1]).long()
        background_B = torch.multinomial(
            self.background_weights[label_B], 1, generator=self.generator
        )[:, 0]
        image = self.backgrounds_N3hw[background_B].float()
        for part_B in part_BS.unbind(1):
            part_B4hw = self.parts_N4hw[part_B].float()
            image = part_B4hw[:, :3] + image * (1 - part_B4hw[:, 3:] / 255)
        flip_B = torch.rand(B, generator=self.generator, device=self.device) < 0.5
        image = torch.where(flip_B[:, None, None, None], image.flip(-1), image)
        return image / 127.5 - 1
