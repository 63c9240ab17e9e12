"""Reverse diffusion of Hi-MAR's tokens: respaced cosine schedule, one step, a whole sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hmar.diffusion_head import Denoiser, guided_noise

BASE_STEPS = 1000
MAX_BETA = 0.999

Noise = Callable[[int], Tensor]
"""Number of the draw -> standard normal (B, n, C): 0 starts, j + 1 goes into reverse step j."""
Record = Callable[[str, Tensor], None]


def respaced_timesteps(respacing: str) -> tuple[int, ...]:
    """Time steps of the 1000-step axis that a sampling visits, ascending.

    Args:
        respacing: counts separated by commas, each for an equal section of the axis, spread from
            the section's first to its last step ("100"; "5,3,2,0" leaves the last quarter out);
            "" = all steps.

    Raises:
        ValueError: the counts cannot be read, do not fit, or give less than 2 steps.
    """
    try:
        counts = [int(c) for c in respacing.split(",")] if respacing else [BASE_STEPS]
    except ValueError:
        counts = [-1]
    size, longer = divmod(BASE_STEPS, len(counts))
    timesteps: list[int] = []
    first = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 0 <= count <= length:
            raise ValueError(
                f"respacing {respacing!r}: expected counts separated by commas, "
                f"section {section} from 0 to {length}"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            timesteps.append(first + round(place))
            place += stride  # added up, not multiplied: the published rounding
        first += length
    if len(timesteps) < 2:
        raise ValueError(f"respacing {respacing!r} gives {len(timesteps)} steps; at least 2 needed")
    return tuple(timesteps)


def cosine_alphas_cumprod() -> np.ndarray:
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
        alphas_cumprod: signal share A of a token noised to this step.
        mean_x0, mean_x: weights of the predicted token and of the state in the posterior mean.
        log_betas: upper end of the learned log-variance.
        posterior_log_variance: its lower end.
        fixed_log_variance: log-variance of a denoiser that predicts none.
    """

    timesteps: tuple[int, ...]
    alphas_cumprod: np.ndarray
    mean_x0: np.ndarray
    mean_x: np.ndarray
    log_betas: np.ndarray
    posterior_log_variance: np.ndarray
    fixed_log_variance: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Tokens noised to step i."""
        A = self.alphas_cumprod[i]
        return math.sqrt(A) * x0 + math.sqrt(1 - A) * noise

    def predicted_x0(self, i: int, x: Tensor, noise: Tensor) -> Tensor:
        """Tokens from the state of step i and the noise predicted in it."""
        A = self.alphas_cumprod[i]
        return math.sqrt(1 / A) * x - math.sqrt(1 / A - 1) * noise

    def reverse(self, i: int, x_BnC: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the state before step i, (B, n, C), and log-variance, broadcastable to it.

        Args:
            out: output of the denoiser: the noise (B, n, C), or noise and variance values
                (B, n, 2C), where -1 is the lower end of the log-variance and 1 the upper one.
        """
        noise, *values = out.split(x_BnC.shape[-1], dim=-1)
        mean = self.mean_x0[i].item() * self.predicted_x0(i, x_BnC, noise)
        mean = mean + self.mean_x[i].item() * x_BnC
        if not values:
            return mean, x_BnC.new_tensor(self.fixed_log_variance[i])
        upper = (values[0] + 1) / 2
        log_variance = upper * self.log_betas[i].item()
        return mean, log_variance + (1 - upper) * self.posterior_log_variance[i].item()


@lru_cache
def diffusion_schedule(respacing: str) -> DiffusionSchedule:
    """Schedule of a sampling; `respacing` as in `respaced_timesteps`."""
    timesteps = respaced_timesteps(respacing)
    chosen = cosine_alphas_cumprod()[list(timesteps)]
    betas = 1 - chosen / np.append(1.0, chosen[:-1])
    A = np.cumprod(1 - betas)
    A_before = np.append(1.0, A[:-1])
    posterior = betas * (1 - A_before) / (1 - A)
    return DiffusionSchedule(
        timesteps=timesteps,
        alphas_cumprod=A,
        mean_x0=betas * np.sqrt(A_before) / (1 - A),
        mean_x=(1 - A_before) * np.sqrt(1 - betas) / (1 - A),
        log_betas=np.log(betas),
        # the posterior variance of step 0 is zero; that of step 1 stands in
        posterior_log_variance=np.log(np.append(posterior[1], posterior[1:])),
        fixed_log_variance=np.log(np.append(posterior[1], betas[1:])),
    )


def sample_tokens(
    denoiser: Denoiser,
    schedule: DiffusionSchedule,
    z_RnD: Tensor,
    noise: Noise,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    held: tuple[Tensor, Tensor] | None = None,
    record: Record = lambda name, value: None,
) -> Tensor:
    """Tokens (B, n, C) by reverse diffusion.

    Args:
        z_RnD: conditions; with twice as many rows as the noise, guided, conditional half first.
        weight: guidance strength of `guided_noise`.
        temperature: factor on the noise of the reverse steps, not on the first.
        held: boolean (B, n), True = known, and tokens (B, n, C). Known tokens enter every step
            noised with the first noise; what comes out in their places is not them.
        record: receives the state before and after every reverse step.
    """
    cond_RnW = denoiser.cond(z_RnD)
    first = x = noise(0)
    guided = z_RnD.shape[0] == 2 * x.shape[0]
    for j, i in enumerate(reversed(range(schedule.num_steps))):
        if held is not None:
            known_Bn, tokens_BnC = held
            x = torch.where(known_Bn[..., None], schedule.noised(i, tokens_BnC, first), x)
        record("x_in", x)
        time_11W = denoiser.time(torch.tensor([schedule.timesteps[i]], device=x.device))
        out = (
            guided_noise(denoiser, x, time_11W, cond_RnW, weight)
            if guided
            else denoiser(x, time_11W, cond_RnW)
        )
        x, log_variance = schedule.reverse(i, x, out)
        if i > 0:
            x = x + torch.exp(log_variance / 2) * noise(j + 1) * temperature
        record("x_out", x)
    return x
