"""The plan of Hi-MAR's two phases: pure functions of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CfgSchedule = Literal["linear", "constant"]
Phase = Literal["pivot", "dense"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a phase.

    Attributes:
        unknown: tokens of an image that are unknown before the step.
        remaining: those still unknown after it; they are the first of the image's order.
        weight: guidance strength w, of the form `uncond + w (cond - uncond)`.
    """

    unknown: int
    remaining: int
    weight: float

    @property
    def predicted(self) -> int:
        """Tokens that become known in the step."""
        return self.unknown - self.remaining


def plan(num_tokens: int, num_steps: int, cfg: float, cfg_schedule: CfgSchedule) -> list[Step]:
    """Steps of one phase.

    The unknown share follows a cosine and is 0 only after the last step. A linear weight grows from
    1 with the known share; it never reaches `cfg`, since one token counts as unknown in the last
    step too.
    """
    steps, unknown = [], num_tokens
    for k in range(1, num_steps + 1):
        masked = math.floor(num_tokens * math.cos(math.pi / 2 * k / num_steps))
        masked = max(1, min(unknown - 1, masked))
        growth = 1.0 if cfg_schedule == "constant" else (num_tokens - masked) / num_tokens
        remaining = 0 if k == num_steps else masked
        steps.append(Step(unknown=unknown, remaining=remaining, weight=1 + (cfg - 1) * growth))
        unknown = masked
    return steps
