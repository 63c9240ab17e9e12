"""Reverse diffusion of Hi-MAR's tokens: the respaced cosine schedule, and one step in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

BASE_STEPS = 1000
MAX_BETA = 0.999


def respaced_timesteps(respacing: str) -> tuple[int, ...]:
    """Time steps of the 1000-step axis that a sampling visits, ascending.

    Args:
        respacing: counts separated by commas, each for an equal section of the axis, spread from
            the section's first to its last step ("100"; "5,3,2,0" leaves the last quarter out).

    Raises:
        ValueError: the counts cannot be read, do not fit, or give less than 2 steps.
    """
    try:
        counts = [int(c) for c in respacing.split(",")]
    except ValueError:
        counts = [-1]
    size, longer = divmod(BASE_STEPS, len(counts))
    timesteps: list[int] = []
    first = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 0 <= count <= length:
            raise ValueError(
                f"diffusion steps {respacing!r}: expected counts separated by commas, such as 100 "
                f"or 5,3,2,0, each from 0 to {length}"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            timesteps.append(first + round(place))
            place += stride  # added up, not multiplied: the published rounding
        first += length
    if len(timesteps) < 2:
        raise ValueError(
            f"diffusion steps {respacing!r} are {len(timesteps)} in all, at least 2 are needed"
        )
    return tuple(timesteps)


def _base_signal() -> np.ndarray:
    """Signal share after every step of the base process, float64 (1000,)."""
    ends = [
        math.cos((t / BASE_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(BASE_STEPS + 1)
    ]
    betas = [min(1 - b / a, MAX_BETA) for a, b in pairwise(ends)]
    return np.cumprod(1 - np.array(betas))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSchedule:
    """Coefficients of the reverse steps, float64 (T,), by step index; sampling goes down to 0.

    Attributes:
        timesteps: the step's time on the 1000-step axis, which the denoiser is told.
        signal: share A of a token in its state of this step.
        mean_x0, mean_x: weights of the predicted token and of the state in the posterior mean.
        log_betas: upper end of the learned log-variance.
        posterior_log_variance: its lower end.
        fixed_log_variance: log-variance of a denoiser that predicts none.
    """

    timesteps: tuple[int, ...]
    signal: np.ndarray
    mean_x0: np.ndarray
    mean_x: np.ndarray
    log_betas: np.ndarray
    posterior_log_variance: np.ndarray
    fixed_log_variance: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def noised(self, i: int, x0: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Tokens noised to step i."""
        A = float(self.signal[i])
        return math.sqrt(A) * x0 + math.sqrt(1 - A) * noise

    def reverse(
        self, i: int, x_BnC: np.ndarray, noise: np.ndarray, variance: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the state before step i, (B, n, C), and log-variance, broadcastable to it.

        Args:
            noise: what the denoiser predicts, (B, n, C).
            variance: its variance values, (B, n, C): -1 is the lower end of the log-variance, 1 the
                upper one; None = the fixed one.
        """
        A = float(self.signal[i])
        x0 = math.sqrt(1 / A) * x_BnC - math.sqrt(1 / A - 1) * noise
        mean = float(self.mean_x0[i]) * x0 + float(self.mean_x[i]) * x_BnC
        if variance is None:
            return mean, np.asarray(self.fixed_log_variance[i], x_BnC.dtype)
        upper = (variance + 1) / 2
        log_variance = upper * float(self.log_betas[i])
        return mean, log_variance + (1 - upper) * float(self.posterior_log_variance[i])


@lru_cache
def diffusion_schedule(respacing: str) -> DiffusionSchedule:
    """Schedule of a sampling; `respacing` as in `respaced_timesteps`."""
    timesteps = respaced_timesteps(respacing)
    chosen = _base_signal()[list(timesteps)]
    betas = 1 - chosen / np.append(1.0, chosen[:-1])
    A = np.cumprod(1 - betas)
    A_before = np.append(1.0, A[:-1])
    posterior = betas * (1 - A_before) / (1 - A)
    return DiffusionSchedule(
        timesteps=timesteps,
        signal=A,
        mean_x0=betas * np.sqrt(A_before) / (1 - A),
        mean_x=(1 - A_before) * np.sqrt(1 - betas) / (1 - A),
        log_betas=np.log(betas),
        # the posterior variance of step 0 is zero; that of step 1 stands in
        posterior_log_variance=np.log(np.append(posterior[1], posterior[1:])),
        fixed_log_variance=np.log(np.append(posterior[1], betas[1:])),
    )
