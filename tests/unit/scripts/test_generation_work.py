"""Counted arithmetic against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hmar.config import PATCH_NUMS_256, TokenizerConfig
from hmar.vae import VQVAE
from runtime.bundle import DtypeName, Manifest, WeightSpec
from runtime.config import SamplingConfig
from scripts.generation_work import Step, Work, planned_steps, step_work, total
from tests.unit.runtime.manifests import C, V, manifest, model_spec

SCHEDULE = ((1,), (1, 3))


def with_tensors(
    shapes: dict[str, tuple[int, ...]], dtype: DtypeName = "float16", **model: object
) -> Manifest:
    tensors = {name: WeightSpec(dtype, shape, 0) for name, shape in shapes.items()}
    return manifest(tensors=tensors, model=model_spec(**model))


def blocks() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"word_embed.weight": (4, C)}
    for group in ("base_blocks.0", "ns_blocks.0", "mask_blocks.0"):
        for name, wide in (("qkv", 3), ("proj", 1), ("fc1", 4), ("ada", 6)):
            shapes[f"{group}.{name}.weight"] = (C, wide * C)
        shapes[f"{group}.fc2.weight"] = (4 * C, C)
    for head in ("ns_head", "mask_head"):
        shapes |= {f"{head}.weight": (C, V), f"{head}.ada.weight": (C, 2 * C)}
    return shapes


@pytest.mark.parametrize(("graph", "guided"), [("ns1", True), ("mask1", False)])
def test_a_pass_of_two_blocks(graph: str, guided: bool) -> None:
    work = step_work(with_tensors(blocks()), Step(graph, guided), batch=3)
    rows, length, depth = 6 if guided else 3, 4, 2
    linear = 2 * rows * length * 12 * C * C * depth
    attention = 2 * (2 * rows * length * length * C) * depth  # scores, and values weighted by them
    assert work["trunk"].flops == linear + attention
    assert work["head"].flops == 2 * rows * length * C * V
    # weights, then inputs and outputs of qkv, proj, fc1 and fc2, then q, k, v and the result
    numbers = (
        12 * C * C + rows * length * C * (1 + 3 + 1 + 1 + 1 + 4 + 4 + 1) + rows * length * 4 * C
    )
    assert work["trunk"].nbytes == 2 * numbers * depth
    assert work["head"].nbytes == 2 * (C * V + rows * length * (C + V))


def test_conditioning_is_one_product_per_modulation() -> None:
    work = step_work(with_tensors(blocks()), Step("cond", True), batch=2)["cond"]
    assert work.flops == 2 * 4 * C * (3 * 6 * C + 2 * 2 * C)


def test_the_quantizer_convolves_the_finest_map() -> None:
    shapes = with_tensors({"phi.0.weight": (4, 4, 3, 3)}, "float32")
    for graph in ("quant0", "mask_input1"):
        work = step_work(shapes, Step(graph), batch=5)["quantizer"]
        assert work == Work(flops=2 * 5 * 2 * 2 * 144, nbytes=4 * (144 + 5 * 8 * 4))


def test_the_published_decoder_takes_0_394_tflop_an_image() -> None:
    with torch.device("meta"):
        tokenizer = VQVAE(TokenizerConfig(), PATCH_NUMS_256)
    shapes = {name: tuple(weight.shape) for name, weight in tokenizer.named_parameters()}
    decoder = with_tensors(shapes, patch_nums=PATCH_NUMS_256, image_side_px=256)
    assert math.isclose(
        step_work(decoder, Step("decode"), 2)["decode"].flops, 2 * 0.394e12, rel_tol=2e-3
    )


def test_a_small_decoder() -> None:
    shapes = {
        "post_quant_conv.weight": (4, 4, 3, 3),
        "decoder.conv_in.weight": (8, 4, 3, 3),
        "decoder.mid.attn_1.qkv.weight": (24, 8, 1, 1),
        "decoder.up.1.upsample.conv.weight": (8, 8, 3, 3),
        "decoder.up.0.block.0.conv1.weight": (8, 8, 3, 3),
        "decoder.conv_out.weight": (3, 8, 3, 3),
        "encoder.conv_in.weight": (8, 3, 3, 3),
    }
    flops = step_work(with_tensors(shapes), Step("decode"), 1)["decode"].flops
    coarse = 4 * (4 * 4 * 9 + 8 * 4 * 9 + 24 * 8)
    fine = 16 * (8 * 8 * 9 + 8 * 8 * 9 + 3 * 8 * 9)
    assert flops == 2 * (coarse + fine) + 4 * 4**2 * 8


@pytest.mark.parametrize(
    ("floor", "guided"),
    [(1e-5, ["cond", "ns1"]), (0.0, ["cond", "ns0", "ns1", "mask1"])],
)
def test_planned_steps(floor: float, guided: list[str]) -> None:
    sampling = SamplingConfig(top_k=0, mask_schedule=SCHEDULE, skip_guidance_below=floor)
    steps = planned_steps(manifest(), sampling)
    masked = ["mask_input1", "mask1"]
    both = ["cond", "ns0", "quant0", "ns1", *masked, "quant1", "decode"]
    assert [step.graph for step in steps] == both
    assert [step.graph for step in steps if step.is_guided] == guided
    plain = planned_steps(manifest(), replace(sampling, mask_schedule=None))
    assert [step.graph for step in plain] == [g for g in both if g not in masked]


def test_graphs_outside_a_generation_are_refused() -> None:
    found = manifest()
    encode = {**found.graphs, "encode": found.graphs["decode"].__class__(
        kind="encode", inputs=(), outputs=(), file="e", sha256="0", nbytes=1
    )}  # fmt: skip
    with pytest.raises(ValueError, match="encode is no step"):
        step_work(manifest(graphs=encode), Step("encode"), 1)


def test_total() -> None:
    assert total([Work(flops=1, nbytes=2), Work(flops=3)]) == Work(flops=4, nbytes=2)
