"""Settings of a Hi-MAR generation, and the plan of its two phases: pure functions of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CfgSchedule = Literal["linear", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARSampling:
    """Settings of one generation.

    Attributes:
        num_iter: steps of the dense phase; the pivot phase has `config.pivot_steps`.
        cfg: guidance strength of the dense phase, of the form `uncond + w (cond - uncond)`; 1 = no
            guidance.
        re_cfg: the same for the pivot phase.
        cfg_schedule: let w grow from 1 with the share of known tokens, or keep it.
        temperature: factor on the noise of the reverse diffusion.
        pivot_respacing, dense_respacing: diffusion steps of the two denoisers, as counts per
            section of the 1000-step axis; see `hmar.diffusion.respaced_timesteps`.
    """

    num_iter: int = 4
    cfg: float = 1.0
    re_cfg: float = 1.0
    cfg_schedule: CfgSchedule = "linear"
    temperature: float = 1.0
    pivot_respacing: str = "100"
    dense_respacing: str = "250"

    def __post_init__(self) -> None:
        if self.num_iter < 1:
            raise ValueError(f"num_iter must be at least 1, got {self.num_iter}")
        if self.cfg_schedule not in ("linear", "constant"):
            raise ValueError(
                f"cfg_schedule must be 'linear' or 'constant', got {self.cfg_schedule!r}"
            )


PUBLISHED_HIMAR_SAMPLING = {
    "himar-base-256": HiMARSampling(cfg=2.5, re_cfg=2.7),
    "himar-large-256": HiMARSampling(cfg=3.5, re_cfg=3.5),
    "himar-huge-256": HiMARSampling(num_iter=12, cfg=3.2, re_cfg=5.5),
}
"""By preset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a phase.

    Attributes:
        unknown: tokens of an image that are unknown before the step.
        remaining: those still unknown after it; they are the first of the image's order.
        weight: guidance strength.
    """

    unknown: int
    remaining: int
    weight: float


def plan(num_tokens: int, num_steps: int, cfg: float, cfg_schedule: CfgSchedule) -> list[Step]:
    """Steps of one phase: the unknown share follows a cosine, and is 0 only after the last step."""
    steps, unknown = [], num_tokens
    for k in range(1, num_steps + 1):
        masked = math.floor(num_tokens * math.cos(math.pi / 2 * k / num_steps))
        masked = max(1, min(unknown - 1, masked))
        growth = 1.0 if cfg_schedule == "constant" else (num_tokens - masked) / num_tokens
        steps.append(
            Step(
                unknown=unknown,
                remaining=0 if k == num_steps else masked,
                # in the last step too the weight counts one token as masked, so it stays below cfg
                weight=1 + (cfg - 1) * growth,
            )
        )
        unknown = masked
    return steps
