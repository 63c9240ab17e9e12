"""Multi-scale residual quantizer: token maps to the running reconstruction `f_hat` and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmar.config import TokenizerConfig


def phi_indices(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Which phi convolution every scale uses.

    The one whose tick is nearest, first on a tie (float64).
    """
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    return tuple(int(np.argmin(np.abs(ticks - k / (num_scales - 1)))) for k in range(num_scales))


def flatten_map(map_BChw: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C), rows of the map one after the other."""
    return map_BChw.flatten(2).transpose(1, 2)


class PhiBank(nn.Module):
    """The convolutions shared by the scales; `qresi_ls` is the published name."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        C = config.latent_channels
        self.qresi_ls = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in range(config.num_phi))


class Quantizer(nn.Module):
    """Codebook and phi convolutions, with the arithmetic between scale grids.

    All maps are (B, Cvae, h, w); token maps are (B, pn*pn) in row-major order.
    """

    def __init__(self, config: TokenizerConfig, patch_nums: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.patch_nums = tuple(patch_nums)
        self.phi_index = phi_indices(len(self.patch_nums), config.num_phi)
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)
        self.quant_resi = PhiBank(config)

    @property
    def side(self) -> int:
        """Side of the finest map, P."""
        return self.patch_nums[-1]

    def lookup(self, tokens_Bl: Tensor) -> Tensor:
        """Codebook rows as a map, (B, Cvae, pn, pn)."""
        pn = round(tokens_Bl.shape[1] ** 0.5)
        return self.embedding(tokens_Bl).transpose(1, 2).unflatten(2, (pn, pn))

    def upsample(self, h_BChw: Tensor) -> Tensor:
        """Bicubic enlargement (a = -0.75, half-pixel centres, clamped edges) to the finest side."""
        if h_BChw.shape[-1] == self.side:
            return h_BChw
        return F.interpolate(h_BChw, size=(self.side, self.side), mode="bicubic")

    def downsample(self, map_BCHW: Tensor, pn: int) -> Tensor:
        """Area average to (pn, pn)."""
        return (
            map_BCHW
            if pn == map_BCHW.shape[-1]
            else F.interpolate(map_BCHW, size=(pn, pn), mode="area")
        )

    def phi(self, h_BCHW: Tensor, scale_idx: int) -> Tensor:
        """(1 - r) h + r conv(h) with the convolution of this scale."""
        r = self.config.phi_ratio
        return h_BCHW * (1 - r) + self.quant_resi.qresi_ls[self.phi_index[scale_idx]](h_BCHW) * r

    def residual(self, h_BChw: Tensor, scale_idx: int) -> Tensor:
        """What codebook rows of one scale add to `f_hat`, (B, Cvae, P, P)."""
        return self.phi(self.upsample(h_BChw), scale_idx)

    def commit(self, f_hat_BCHW: Tensor, h_BChw: Tensor, scale_idx: int) -> Tensor:
        """`f_hat` after this scale's codebook rows have been added."""
        return f_hat_BCHW + self.residual(h_BChw, scale_idx)

    def masked_h(self, h_BChw: Tensor, scale_idx: int) -> Tensor:
        """This scale's own contribution at its own size: the second input of a masked pass."""
        return self.downsample(self.residual(h_BChw, scale_idx), h_BChw.shape[-1])

    def nearest(self, z_BChw: Tensor) -> Tensor:
        """Nearest codebook rows (Euclidean) of a map, (B, h*w)."""
        z_BlC, rows_VC = flatten_map(z_BChw), self.embedding.weight
        # |z|^2 is the same for all rows, so it does not enter the comparison
        return torch.argmin(rows_VC.square().sum(1) - 2 * (z_BlC @ rows_VC.T), dim=-1)

    def encode(self, f_BCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Token maps of all scales of a latent, and `f_hat` after each of them."""
        rest, f_hat = f_BCHW, torch.zeros_like(f_BCHW)
        tokens, f_hats = [], []
        for k, pn in enumerate(self.patch_nums):
            tokens.append(self.nearest(self.downsample(rest, pn)))
            added = self.residual(self.lookup(tokens[-1]), k)
            f_hat, rest = f_hat + added, rest - added
            f_hats.append(f_hat)
        return tokens, f_hats

    def teacher_maps(self, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs of a teacher-forced pass over scales 1..S-1, from the token maps of all scales.

        Returns:
            The reconstruction of the earlier scales, and each scale's own tokens through phi, both
            area-reduced to each scale's size and packed: (B, L-1, Cvae).
        """
        f_hat = torch.zeros((), device=self.embedding.weight.device)
        maps, own = [], []
        for k, pn in enumerate(self.patch_nums):
            added = self.residual(self.lookup(tokens[k]), k)
            if k > 0:
                maps.append(flatten_map(self.downsample(f_hat, pn)))
                own.append(flatten_map(self.downsample(added, pn)))
            f_hat = f_hat + added
        return torch.cat(maps, dim=1), torch.cat(own, dim=1)
