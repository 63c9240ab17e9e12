"""Losses of the three stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 7
SSIM_C1, SSIM_C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of the usual constants, for a range of 2


def edge_loss(image: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute error of neighbouring differences, summed over halved resolutions.

    Stands in for a perceptual loss on drawn pictures: it charges blurred outlines, and needs no
    pretrained network.
    """
    loss = image.new_zeros(())
    difference = image - target
    for level in range(levels):
        if level > 0:
            difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return loss


def ssim_loss(image: Tensor, target: Tensor) -> Tensor:
    """One minus the mean structural similarity of images in [-1, 1], in box windows."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, SSIM_WINDOW, stride=2)

    mu_a, mu_b = mean(image), mean(target)
    var_a, var_b = mean(image * image) - mu_a * mu_a, mean(target * target) - mu_b * mu_b
    cov = mean(image * target) - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + SSIM_C1) / (mu_a * mu_a + mu_b * mu_b + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_a + var_b + SSIM_C2)
    return 1 - (luminance * structure).mean()


def psnr(image_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every image in [-1, 1], (B,)."""
    mse_B = (image_B3HW.clamp(-1, 1) - target_B3HW).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / mse_B)


def scale_weights(patch_nums: Sequence[int], peak: float, sigma: float) -> tuple[float, ...]:
    """Share of the loss of every scale, summing to 1: a normal curve over log patch numbers.

    HMAR (arXiv:2506.04421) reweights the scales with a log-normal curve; the constants here are not
    its own but were chosen for the demo.
    """
    raw = [math.exp(-0.5 * (math.log(pn / peak) / sigma) ** 2) for pn in patch_nums]
    return tuple(w / sum(raw) for w in raw)


def token_weights(patch_nums: Sequence[int], peak: float, sigma: float) -> Tensor:
    """Loss weight of every token of the packed pyramid, (L,): its scale's share over pn²."""
    shares = scale_weights(patch_nums, peak, sigma)
    return torch.cat(
        [torch.full((pn * pn,), s / (pn * pn)) for pn, s in zip(patch_nums, shares, strict=True)]
    )


def token_losses(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """Cross-entropy of every token, (B, L)."""
    return F.cross_entropy(
        logits_BLV.float().flatten(0, 1), tokens_BL.flatten(), reduction="none"
    ).view_as(tokens_BL)
