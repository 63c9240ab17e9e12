"""The PyTorch generation to compare a bundle with, of either model family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hmar.himar_schedule import HiMARSampling
from hmar.reference import ReferenceConfig
from runtime.himar_config import HiMARSamplingConfig
from scripts.generation_rivals import TorchGenerator
from scripts.generation_times import Sampling
from scripts.himar_rival import HiMARTorchGenerator


class Rival(NamedTuple):
    """Generates images of labels; `compile` makes it faster, None = it cannot be compiled."""

    generate: Callable[[Sequence[int]], Tensor]
    compile: Callable[[], None] | None


def load_rival(
    sampling: Sampling, ckpt: Sequence[Path], vae: Path, device: str, precision: str
) -> Rival:
    """The reference generation with a runtime's settings."""
    if isinstance(sampling, HiMARSamplingConfig):
        himar = HiMARTorchGenerator.load(ckpt, vae, device, precision)
        config = HiMARSampling(
            num_iter=sampling.num_iter,
            cfg=sampling.cfg,
            re_cfg=sampling.re_cfg,
            cfg_schedule=sampling.cfg_schedule,
            temperature=sampling.temperature,
            pivot_respacing=sampling.pivot_diffusion_steps,
            dense_respacing=sampling.dense_diffusion_steps,
        )
        return Rival(partial(himar, config=config), None)
    hmar = TorchGenerator.load(ckpt, vae, device, precision)
    settings = ReferenceConfig(
        cfg=sampling.cfg,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        mask_schedule=sampling.mask_schedule,
    )
    return Rival(partial(hmar, config=settings), hmar.compile)
