"""Settings of one Hi-MAR generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from runtime.bundle import HiMARSamplingDefaults, Manifest
from runtime.diffusion import respaced_timesteps
from runtime.errors import ManifestError
from runtime.himar_schedule import CfgSchedule
from runtime.normals import MAX_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARSamplingConfig:
    """Settings of one generation.

    Attributes:
        num_iter: steps of the dense phase; the pivot phase has four per side of its grid.
        cfg: guidance strength of the dense phase, >= 0, of the form `uncond + w (cond - uncond)`;
            1 = no guidance, and half the work.
        re_cfg: the same for the pivot phase.
        cfg_schedule: "linear" lets w grow from 1 with the share of known tokens, "constant" keeps
            it.
        temperature: factor on the noise of the reverse diffusion, >= 0.
        pivot_diffusion_steps, dense_diffusion_steps: of the two denoisers, as counts per section of
            the 1000-step axis; see `runtime.diffusion.respaced_timesteps`.
    """

    num_iter: int = 4
    cfg: float = 2.5
    re_cfg: float = 2.7
    cfg_schedule: CfgSchedule = "linear"
    temperature: float = 1.0
    pivot_diffusion_steps: str = "100"
    dense_diffusion_steps: str = "250"

    def __post_init__(self) -> None:
        is_count = isinstance(self.num_iter, int) and not isinstance(self.num_iter, bool)
        if not is_count or not 1 <= self.num_iter <= MAX_STEPS:
            raise ValueError(
                f"num_iter must be an integer from 1 to {MAX_STEPS}, got {self.num_iter!r}"
            )
        for name in ("cfg", "re_cfg", "temperature"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if self.cfg_schedule not in get_args(CfgSchedule):
            raise ValueError(
                f"cfg_schedule must be one of {get_args(CfgSchedule)}, got {self.cfg_schedule!r}"
            )
        for steps in (self.pivot_diffusion_steps, self.dense_diffusion_steps):
            respaced_timesteps(steps)

    @classmethod
    def defaults(cls, manifest: Manifest) -> HiMARSamplingConfig:
        """The settings that a Hi-MAR bundle's model was published with.

        Raises:
            ManifestError: the bundle is of another family.
        """
        published = manifest.sampling
        if not isinstance(published, HiMARSamplingDefaults):
            raise ManifestError(
                f"these settings are Hi-MAR's; this bundle is of family {manifest.family!r}"
            )
        return cls(
            num_iter=published.num_iter,
            cfg=published.cfg,
            re_cfg=published.re_cfg,
            cfg_schedule=published.cfg_schedule,
            temperature=published.temperature,
            pivot_diffusion_steps=published.pivot_diffusion_steps,
            dense_diffusion_steps=published.dense_diffusion_steps,
        )
