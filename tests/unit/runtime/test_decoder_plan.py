"""The decoder's launches: every one has a kernel, every kernel a launch, and memory is reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmar.config import KLVAEConfig, TokenizerConfig
from hmar.kl_vae import KLVAE
from hmar.vae import VQVAE
from runtime.decoder_plan import (
    INPUTS,
    OUTPUT,
    PLACES,
    PREFIXES,
    DecoderPlan,
    DecoderSizes,
    plan_decoder,
)
from runtime.errors import BackendUnavailableError
from tests.kernel_tables import kernel_table

aot = pytest.importorskip("plugins_trt.decoder.aot", reason="no triton")

PUBLISHED = DecoderSizes(
    latent_channels=32, latent_side=16, widths=(160, 160, 320, 320, 640), num_blocks=3
)
DEMO = DecoderSizes(latent_channels=32, latent_side=16, widths=(64, 64, 64, 128), num_blocks=2)
KL16 = DecoderSizes(
    family="himar", latent_channels=16, latent_side=16, widths=(128, 128, 256, 256, 512),
    num_blocks=3, latent_scale=0.2325,
)  # fmt: skip
SIZES = {"published": PUBLISHED, "demo": DEMO, "himar": KL16}
CONFIGS: dict[str, TokenizerConfig | KLVAEConfig] = {
    "himar": KLVAEConfig(),
    "published": TokenizerConfig(),
    "demo": TokenizerConfig(base_channels=64, channel_mult=(1, 1, 1, 2), num_res_blocks=1),
}
BATCHES = (1, 3, 8, 32, 64)


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    return kernel_table(aot)


@pytest.fixture(scope="module")
def plans(kernels: dict[str, dict[str, Any]]) -> dict[tuple[str, int], DecoderPlan]:
    return {(n, b): plan_decoder(SIZES[n], b, kernels) for n in SIZES for b in BATCHES}


def test_the_library_holds_the_kernels_that_are_launched(
    kernels: dict[str, dict[str, Any]], plans: dict[tuple[str, int], DecoderPlan]
) -> None:
    assert {step.kernel for plan in plans.values() for step in plan.steps} == set(kernels)


def test_arguments_are_the_parameters_of_the_kernels(
    kernels: dict[str, dict[str, Any]], plans: dict[tuple[str, int], DecoderPlan]
) -> None:
    for step in (step for plan in plans.values() for step in plan.steps):
        kinds = kernels[step.kernel]["parameters"]
        assert all(kinds[name] in ("pointer", "tensor_map") for name in step.pointers)
        assert all(kinds[name] in ("i32", "fp32") for name in step.scalars)
        constants = kernels[step.kernel]["constants"]
        optional = {"residual": "HAS_RESIDUAL", "sums": "HAS_SUMS"}
        left_out = set(kinds) - {*step.pointers, *step.scalars, "global_scratch", "profile_scratch"}
        assert all(name in optional and not constants[optional[name]] for name in left_out)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SIZES)
def test_maps_are_read_as_they_were_written(
    kernels: dict[str, dict[str, Any]],
    plans: dict[tuple[str, int], DecoderPlan],
    name: str,
    batch: int,
) -> None:
    plan, sizes = plans[name, batch], SIZES[name]
    pixels, side = sizes.latent_side**2, sizes.latent_side << (len(sizes.widths) - 1)
    held = {INPUTS[sizes.family]: sizes.latent_channels * pixels}  # values of one image, by place
    for step in plan.steps:
        of, function = kernels[step.kernel]["constants"], kernels[step.kernel]["function"]
        if function in ("conv", "wide_conv"):
            pixels = step.scalars["height"] * step.scalars["width"]
            reads = {"x": of["CIN"] * pixels}
            writes = of["COUT"] * pixels * (4 if of["UPSAMPLES"] else 1)
            reads |= {"residual": writes} if of["HAS_RESIDUAL"] else {}
            assert step.pointers["out"] not in (step.pointers["x"], step.pointers.get("residual"))
            held["sums"] = of["COUT"]
        elif function == "statistics":
            reads, writes = {"sums": of["CHANNELS"]}, of["CHANNELS"]
            held["scale_shift"] = of["CHANNELS"]
        elif function == "normalize":
            writes = step.scalars["num_values"]
            reads = {"x": writes, "scale_shift": of["CHANNELS"]}
        elif function == "from_tokens":
            writes = step.scalars["num_values"] // batch
            reads = {"tokens": writes}
        else:
            pixels = step.scalars["num_pixels"]
            channels = of.get("CHANNELS", 3)
            reads = {"qkv": 3 * channels * pixels, "x": 3 * pixels, "planes": channels * pixels}
            writes = channels * pixels
        for parameter, values in reads.items():
            if parameter in step.pointers:
                assert held[step.pointers[parameter]] == values, step
        if "out" in step.pointers:
            held[step.pointers["out"]] = writes
            starts = [*sorted(plan.offsets.values()), plan.nbytes]
            start = plan.offsets[step.pointers["out"]]
            room = starts[starts.index(start) + 1] - start
            assert 2 * batch * writes <= room
    assert plan.steps[-1].pointers["image"] == OUTPUT and pixels == side * side


@pytest.mark.parametrize("batch", BATCHES)
def test_scratch_memory_is_that_of_three_maps(
    plans: dict[tuple[str, int], DecoderPlan], batch: int
) -> None:
    plan = plans["published", batch]
    offsets = [plan.offsets[place] for place in (*PLACES, "sums", "scale_shift")]
    assert offsets == sorted(offsets) and not any(offset % 256 for offset in offsets)
    maps = batch * 256 * 256 * 160 * 2
    assert offsets[3] <= 3 * maps and plan.nbytes < 3.1 * maps


@pytest.mark.parametrize("name", SIZES)
def test_weights_are_those_of_the_model(
    plans: dict[tuple[str, int], DecoderPlan], name: str
) -> None:
    with torch.device("meta"):
        config = CONFIGS[name]
        is_kl = isinstance(config, KLVAEConfig)
        vae = KLVAE(config) if is_kl else VQVAE(config, patch_nums=(1, 16))
    expected = {
        weight: tuple(tensor.shape)
        for weight, tensor in vae.state_dict().items()
        if weight.startswith(PREFIXES)
    }
    weights = plans[name, 1].weights
    stored = {n: shape for w, use in weights.items() for n, shape in use.stored(w).items()}
    assert stored == expected
    upsampling = {weight for weight, use in weights.items() if use.upsamples}
    assert upsampling == {weight for weight in expected if weight.endswith("upsample.conv.weight")}


def test_sizes_without_kernels_are_named(kernels: dict[str, dict[str, Any]]) -> None:
    other = DecoderSizes(latent_channels=32, latent_side=16, widths=(96, 192), num_blocks=2)
    with pytest.raises(BackendUnavailableError, match="decoder kernel conv with CIN=32, COUT=19"):
        plan_decoder(other, 1, kernels)
