"""The schedule and the reverse step in NumPy against the oracle's, and a whole sampling."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import hmar.diffusion
from runtime.denoising import Denoising, Held, sample_tokens
from runtime.diffusion import DiffusionSchedule, diffusion_schedule, respaced_timesteps

RESPACINGS = ["100", "250", "1000", "2", "34,33,33,0", "5,3,2,0", "4,3,3,0", "9,6,5,0", "0,1,1"]
ORACLE_NAMES = {"signal": "alphas_cumprod"}
B, N, C = 2, 5, 3


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_schedule_is_the_oracles(respacing: str) -> None:
    ours, oracle = diffusion_schedule(respacing), hmar.diffusion.diffusion_schedule(respacing)
    for field in fields(DiffusionSchedule):
        expected = getattr(oracle, ORACLE_NAMES.get(field.name, field.name))
        np.testing.assert_array_equal(getattr(ours, field.name), expected, err_msg=field.name)


@pytest.mark.parametrize("has_variance", [True, False])
@pytest.mark.parametrize("respacing", ["100", "5,3,2,0"])
def test_reverse_step_is_the_oracles(respacing: str, has_variance: bool) -> None:
    rng = np.random.default_rng(3)
    x, noise, variance = rng.standard_normal((3, B, N, C)).astype(np.float32)
    ours, oracle = diffusion_schedule(respacing), hmar.diffusion.diffusion_schedule(respacing)
    out = torch.from_numpy(np.concatenate((noise, variance) if has_variance else (noise,), axis=-1))
    for i in range(ours.num_steps):
        mean, log_variance = ours.reverse(i, x, noise, variance if has_variance else None)
        assert mean.dtype == log_variance.dtype == np.float32
        expected = oracle.reverse(i, torch.from_numpy(x), out)
        np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(log_variance, expected[1], rtol=1e-5)


@pytest.mark.parametrize("has_held", [True, False])
def test_sampling_is_the_oracles(has_held: bool) -> None:
    rng = np.random.default_rng(4)
    draws = rng.standard_normal((12, B, N, C)).astype(np.float32)
    mask, tokens = rng.random((B, N)) < 0.5, rng.standard_normal((B, N, C)).astype(np.float32)
    schedule = diffusion_schedule("4,3,3,0")
    step = Denoising(
        phase="dense",
        step_idx=0,
        positions=np.tile(np.arange(N), (B, 1)),
        schedule=schedule,
        weight=2.0,
        is_guided=False,
        temperature=0.9,
        held=Held(mask, tokens) if has_held else None,
    )

    class HalfTheState:
        """A denoiser of the oracle's interface that predicts a share of the state."""

        def cond(self, z: torch.Tensor) -> torch.Tensor:
            return z

        def time(self, t: torch.Tensor) -> torch.Tensor:
            return t / 2000

        def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            return x * t

    expected = hmar.diffusion.sample_tokens(
        HalfTheState(),
        hmar.diffusion.diffusion_schedule("4,3,3,0"),
        torch.zeros(B, N, 1),
        lambda draw: torch.from_numpy(draws[draw]),
        temperature=0.9,
        held=(torch.from_numpy(mask), torch.from_numpy(tokens)) if has_held else None,
    )
    ours = sample_tokens(step, lambda x, t: [x * np.float32(t / 2000)], lambda draw: draws[draw])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("", "expected counts separated by commas"),
        ("many", "expected counts separated by commas, such as 100"),
        ("1001", "each from 0 to 1000"),
        ("-2", "each from 0 to 1000"),
        ("300,0,0,0", "each from 0 to 250"),
        ("1", "are 1 in all, at least 2 are needed"),
        ("0,0", "are 0 in all"),
    ],
)
def test_diffusion_steps_that_cannot_be_read(respacing: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"diffusion steps '{respacing}'.*{message}"):
        respaced_timesteps(respacing)
