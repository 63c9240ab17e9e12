"""What one step of a Hi-MAR generation samples with a denoiser, and how: the rule in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.bundle import Kind
from runtime.diffusion import DiffusionSchedule
from runtime.himar_schedule import Phase

DENOISERS: dict[tuple[Phase, bool], Kind] = {
    ("pivot", True): "denoise_pivot",
    ("pivot", False): "denoise_pivot_unguided",
    ("dense", True): "denoise_dense",
    ("dense", False): "denoise_dense_unguided",
}
"""By phase, and whether it is guided."""

Denoiser = Callable[[np.ndarray, int], list[np.ndarray]]
"""(state (B, n, C), time step) -> predicted noise, and variance values if the denoiser has any."""
Noise = Callable[[int], np.ndarray]
"""Number of the draw -> standard normal (B, n, C): 0 starts, j + 1 goes into reverse step j."""


@dataclass(frozen=True, slots=True)
class Held:
    """Tokens that a sampling does not change.

    Attributes:
        mask: boolean (B, n), True = held.
        tokens: (B, n, C) float32.
    """

    mask: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """The sampling of one step.

    Attributes:
        phase, step_idx: the step.
        positions: of the tokens in the grid of the phase, (B, n) int64.
        schedule: of the reverse diffusion.
        weight: guidance strength.
        is_guided: whether the conditions have an unconditional half.
        temperature: factor on the noise of the reverse steps, not on the first.
        held: tokens that are known, None = none is. They enter every step noised with the first
            noise; what comes out in their places is not them.
    """

    phase: Phase
    step_idx: int
    positions: np.ndarray
    schedule: DiffusionSchedule
    weight: float
    is_guided: bool
    temperature: float
    held: Held | None = None

    @property
    def kind(self) -> Kind:
        """The kind of the denoiser's graph."""
        return DENOISERS[self.phase, self.is_guided]


def sample_tokens(step: Denoising, denoiser: Denoiser, noise: Noise) -> np.ndarray:
    """Tokens (B, n, C) float32 by reverse diffusion."""
    schedule = step.schedule
    first = x = noise(0)
    for j, i in enumerate(reversed(range(schedule.num_steps))):
        if step.held is not None:
            noised = schedule.noised(i, step.held.tokens, first)
            x = np.where(step.held.mask[..., None], noised, x)
        predicted, *variance = denoiser(x, schedule.timesteps[i])
        x, log_variance = schedule.reverse(i, x, predicted, variance[0] if variance else None)
        if i > 0:
            x = x + np.exp(log_variance / 2) * noise(j + 1) * step.temperature
    return x
