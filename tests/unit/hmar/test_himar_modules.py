"""Every array of the golden module files of Hi-MAR, by the PyTorch model."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from hmar.diffusion import diffusion_schedule, sample_tokens
from hmar.himar_reference import to_map
from hmar.kl_vae import gaussian
from hmar.quant import flatten_map
from tests.himar_golden import HiMARCase
from tests.himar_module_check import (
    check_dit_denoiser,
    check_mlp_denoiser,
    check_transformer,
    check_vae,
)

MODULES, VAE = HiMARCase("tiny_a.modules"), HiMARCase("vae_tiny")


def test_transformer() -> None:
    check_transformer(MODULES)


def test_mlp_denoiser() -> None:
    check_mlp_denoiser(MODULES)


def test_dit_denoiser() -> None:
    check_dit_denoiser(MODULES)


def test_inputs_are_drawn_as_stored() -> None:
    for name in ("mlp.x", "dit.z", "block.x", "stage.small_z"):
        stored = MODULES.arrays[name]
        drawn = MODULES.drawn(
            {"block.x": "block", "stage.small_z": "small_z"}.get(name, name), stored.shape
        )
        np.testing.assert_array_equal(drawn, stored, err_msg=name)


def states(record: dict[str, list[Tensor]], name: str) -> Tensor:
    return torch.stack(record[name])


@pytest.mark.parametrize("name", ["mlp_sample", "mlp_sample_cfg"])
def test_sampling_of_pivots(name: str) -> None:
    call, seen = MODULES.json[name], defaultdict[str, list[Tensor]](list)
    z_RnD = MODULES.tensor("mlp.c")[:, None]
    B = 6 if call["cfg"] == 1 else 3
    with torch.inference_mode():
        tokens = sample_tokens(
            MODULES.model.pivot_denoiser,
            diffusion_schedule(MODULES.json["config"]["num_sampling_steps"]),
            z_RnD,
            lambda draw: MODULES.noise(draw, (B, 1, 16)),
            weight=call["cfg"],
            temperature=call["temperature"],
            record=lambda key, value: seen[key].append(value),
        )
    # the unconditional half of the reference has noise of its own, and nothing looks at it
    MODULES.check(f"{name}.x_in", states(seen, "x_in").squeeze(2), np.s_[:, :B])
    MODULES.check(f"{name}.x_out", states(seen, "x_out").squeeze(2), np.s_[:, :B])
    MODULES.check(f"{name}.out", tokens.squeeze(1), np.s_[:B])


@pytest.mark.parametrize("name", ["dit_sample", "dit_sample_cfg"])
def test_sampling_of_dense_tokens(name: str) -> None:
    call, seen = MODULES.json[name], defaultdict[str, list[Tensor]](list)
    B, C, G, _ = MODULES.arrays["dit.tokens"].shape
    z_RnD = flatten_map(MODULES.tensor("dit.z"))[: B if call["cfg"] == 1 else 2 * B]
    held = ~MODULES.tensor("dit.unknown").flatten(1), flatten_map(MODULES.tensor("dit.tokens"))
    with torch.inference_mode():
        tokens = sample_tokens(
            MODULES.model.dense_denoiser,
            diffusion_schedule(MODULES.json["config"]["dit_steps"]),
            z_RnD,
            lambda draw: flatten_map(MODULES.noise(2 * draw, (B, C, G, G))),
            weight=call["cfg"],
            temperature=call["temperature"],
            held=held,
            record=lambda key, value: seen[key].append(to_map(value, G)),
        )
    MODULES.check(f"{name}.x_in", states(seen, "x_in"), np.s_[:, :B])
    MODULES.check(f"{name}.x_out", states(seen, "x_out"), np.s_[:, :B])
    MODULES.check(f"{name}.out", to_map(tokens, G), np.s_[:B])


def test_autoencoder() -> None:
    check_vae(VAE)


def test_log_variances_are_clamped() -> None:
    VAE.check("clamp.std", gaussian(VAE.tensor("clamp.moments"))[1])
