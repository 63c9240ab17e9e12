"""The respaced schedule against golden tables, and single reverse steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hmar.diffusion import diffusion_schedule, respaced_timesteps
from tests.himar_golden import HiMARCase

TABLES = HiMARCase("tables")
RESPACINGS = TABLES.json["respacings"]


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_tables(respacing: str) -> None:
    schedule, key = diffusion_schedule(respacing), f"r{respacing or '1000'}"
    A = schedule.alphas_cumprod
    TABLES.check(f"{key}.timestep_map", np.array(schedule.timesteps, np.int32))
    for name, value in {
        "betas": np.exp(schedule.log_betas),
        "log_betas": schedule.log_betas,
        "alphas_cumprod": A,
        "sqrt_alphas_cumprod": np.sqrt(A),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - A),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / A),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / A - 1),
        "posterior_mean_coef1": schedule.mean_x0,
        "posterior_mean_coef2": schedule.mean_x,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "fixed_large_log_variance": schedule.fixed_log_variance,
    }.items():
        TABLES.check(f"table.{key}.{name}", value)


@pytest.mark.parametrize("head", ["mlp", "dit"])
@pytest.mark.parametrize("respacing", RESPACINGS)
def test_reverse_step(head: str, respacing: str) -> None:
    schedule, key = diffusion_schedule(respacing), f"step.{head}.r{respacing or '1000'}"
    x, out = TABLES.tensor("step.x"), TABLES.tensor(f"step.{head}.model_out")
    rows = range(len(x))
    steps = TABLES.arrays[f"{key}.t"].tolist()
    means, log_variances = zip(
        *(schedule.reverse(i, x[n], out[n]) for n, i in zip(rows, steps, strict=True)), strict=True
    )
    noise = out[:, : x.shape[1]]
    x0 = [schedule.predicted_x0(i, x[n], noise[n]) for n, i in zip(rows, steps, strict=True)]
    TABLES.check(f"{key}.mean", torch.stack(means))
    TABLES.check(f"{key}.log_variance", torch.stack([v.expand(x[0].shape) for v in log_variances]))
    TABLES.check(f"{key}.pred_xstart", torch.stack(x0))


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_forward_noising(respacing: str) -> None:
    schedule, key = diffusion_schedule(respacing), respacing or "1000"
    x, noise = TABLES.tensor("step.x"), TABLES.tensor("q_sample.noise")
    steps = TABLES.arrays[f"step.mlp.r{key}.t"].tolist()
    noised = [schedule.noised(i, x[n], noise[n]) for n, i in enumerate(steps)]
    TABLES.check(f"q_sample.r{key}", torch.stack(noised))


def test_sections_are_as_long_as_they_can_be() -> None:
    assert respaced_timesteps("2,2,2") == (0, 333, 334, 666, 667, 999)
    assert respaced_timesteps("1,0,1") == (0, 667)
    assert respaced_timesteps("500,500") == tuple(
        round(i * 499 / 499) + s for s in (0, 500) for i in range(500)
    )


@pytest.mark.parametrize("respacing", ["ddim50", "10,", "1.5", "-3", "1001", "251,0,0,0"])
def test_respacing_that_cannot_be(respacing: str) -> None:
    with pytest.raises(ValueError, match="expected counts separated by commas"):
        respaced_timesteps(respacing)


@pytest.mark.parametrize("respacing", ["1", "0,0", "0,1,0"])
def test_a_sampling_has_two_steps_or_more(respacing: str) -> None:
    with pytest.raises(ValueError, match="at least 2 needed"):
        diffusion_schedule(respacing)


def test_coefficients_agree_with_the_definition_of_the_posterior() -> None:
    schedule = diffusion_schedule("25")
    A, i = schedule.alphas_cumprod, 12
    beta = 1 - A[i] / A[i - 1]
    assert math.isclose(schedule.mean_x0[i], beta * math.sqrt(A[i - 1]) / (1 - A[i]))
    assert math.isclose(schedule.mean_x[i], (1 - A[i - 1]) * math.sqrt(1 - beta) / (1 - A[i]))
