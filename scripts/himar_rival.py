"""Hi-MAR's generation in PyTorch, to compare the runtime with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmar.himar import HiMAR, Phase
from hmar.himar_checkpoint import check_himar_pair, load_himar, load_kl_vae
from hmar.himar_reference import draw_orders, generate, to_uint8
from hmar.himar_schedule import HiMARSampling
from hmar.kl_vae import KLVAE
from scripts.generation_rivals import DTYPES


@dataclass(frozen=True, slots=True)
class HiMARTorchGenerator:
    """The reference generation with random noise; images come back as uint8 on the host.

    In half precision it runs under autocast, as the published evaluation does.
    """

    model: HiMAR
    vae: KLVAE
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls, ckpt: Sequence[Path], vae: Path, device: str, precision: str
    ) -> HiMARTorchGenerator:
        """Model and autoencoder of the published files.

        Raises:
            ValueError: there is more than one file of the model.
        """
        if len(ckpt) != 1:
            raise ValueError(f"--ckpt of Hi-MAR is one file, got {len(ckpt)}")
        model, autoencoder = load_himar(ckpt[0]), load_kl_vae(vae)
        check_himar_pair(model, autoencoder)
        place = torch.device(device)
        return cls(model.to(place), autoencoder.to(place), place, DTYPES[precision])

    def __call__(self, labels: Sequence[int], config: HiMARSampling) -> Tensor:
        """Images (B, H, W, 3) uint8."""

        def noise(phase: Phase, step: int, positions_Bn: Tensor, draw: int) -> Tensor:
            return torch.randn(*positions_Bn.shape, self.model.config.token_channels)

        is_half = self.dtype != torch.float32
        autocast = torch.autocast(self.device.type, self.dtype) if is_half else nullcontext()
        orders = draw_orders(np.random.RandomState(0), len(labels), self.model.config)
        with self.device, autocast:
            cond = self.model.cond(labels)
            image = generate(self.model, self.vae, cond, orders.to(self.device), config, noise)
            return to_uint8(image.float()).cpu()
