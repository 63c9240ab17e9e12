"""Counted arithmetic of Hi-MAR-B against the golden README's table of costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from hmar.config import HIMAR_PRESETS, KLVAEConfig
from hmar.kl_vae import KLVAE
from runtime.bundle import Manifest, WeightSpec
from runtime.himar_config import HiMARSamplingConfig
from scripts.family_work import planned_steps, step_work
from scripts.generation_work import Step
from tests.unit.runtime.manifests import himar_manifest

BASE = HIMAR_PRESETS["himar-base-256"]


def linear_shapes() -> dict[str, tuple[int, ...]]:
    D, W, V, C = BASE.embed_dim, BASE.mlp_width, BASE.dit_width, BASE.token_channels
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, width: int, **wide: int) -> None:
        for linear, times in wide.items():
            shapes[f"{name}.{linear}.weight"] = (width, times * width)

    for phase in ("pivot", "dense"):
        shapes[f"{phase}.encoder_buffer"] = (BASE.buffer_size, D)
    for i in range(BASE.encoder_depth):
        for side in ("encoder", "decoder"):
            block(f"{side}_blocks.{i}", D, qkv=3, proj=1, fc1=4, fc2=4)
    for i in range(BASE.mlp_depth):
        block(f"mlp.blocks.{i}", W, ada=3, fc1=1, fc2=1)
    for i in range(BASE.dit_depth):
        block(f"dit.blocks.{i}", V, ada=6, qkv=3, proj=1, fc1=4, fc2=4)
    for head, width, out in (("mlp", W, 2 * C), ("dit", V, C)):
        shapes[f"{head}.input.weight"] = (C, width)
        shapes[f"{head}.final.ada.weight"] = (width, 2 * width)
        shapes[f"{head}.final.weight"] = (width, out)
    with torch.device("meta"):
        vae = KLVAE(KLVAEConfig())
    return shapes | {name: tuple(weight.shape) for name, weight in vae.named_parameters()}


@pytest.fixture(scope="module")
def base() -> Manifest:
    small = himar_manifest()
    model = replace(
        small.himar,
        embed_dim=BASE.embed_dim,
        encoder_depth=BASE.encoder_depth,
        decoder_depth=BASE.decoder_depth,
        token_channels=BASE.token_channels,
        pivot_side=BASE.pivot_side,
        dense_side=BASE.dense_side,
        num_iter=4,
        image_side_px=256,
    )
    graphs = dict(small.graphs)
    graphs |= {f"pivot_{s:02d}": replace(graphs["pivot_01"], step_idx=s) for s in range(32)}
    graphs |= {f"dense_{k:02d}": replace(graphs["dense_01"], step_idx=k) for k in range(1, 4)}
    tensors = {n: WeightSpec("float16", shape, 0) for n, shape in linear_shapes().items()}
    return replace(small, model=model, graphs=graphs, tensors=tensors)


def test_published_settings_cost_what_the_table_says(base: Manifest) -> None:
    counts = Counter(planned_steps(base, HiMARSamplingConfig()))
    tera: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for step, count in counts.items():
        kind = base.graphs[step.graph].kind
        calls[kind] += count
        for part, work in step_work(base, step, batch=1).items():
            tera[f"{kind} {part}"] += work.flops * count * 1e-12
    assert calls["denoise_pivot"] == 3200 and calls["denoise_dense"] == 1000
    assert calls["pivot"] == 32 and calls["dense"] == 4
    table = {
        # the table's 0.91 for the MLP head has time and condition embedded in every call
        "pivot encoder": 0.98, "pivot decoder": 4.52, "dense encoder": 0.27, "dense decoder": 0.57,
        "denoise_pivot MLP head": 0.86, "denoise_dense DiT head": 31.6, "decode decode": 0.25,
    }  # fmt: skip
    for part, expected in table.items():
        assert tera[part] == pytest.approx(expected, rel=0.02), part


def test_without_guidance_there_is_half_the_work(base: Manifest) -> None:
    plain = HiMARSamplingConfig(cfg=1.0, re_cfg=1.0)
    for step in set(planned_steps(base, plain)) - {Step("cond", True), Step("decode")}:
        twice = replace(step, graph=step.graph.removesuffix("_unguided"), is_guided=True)
        for part, work in step_work(base, step, 2).items():
            assert 2 * work.flops == step_work(base, twice, 2)[part].flops


def test_another_number_of_steps_takes_the_graph_for_any(base: Manifest) -> None:
    steps = planned_steps(base, HiMARSamplingConfig(num_iter=3))
    dense = [step for step in steps if base.graphs[step.graph].kind == "dense"]
    assert [step.graph for step in dense] == ["dense_00", "dense", "dense"]
    assert dense[0].tokens == 0 < dense[1].tokens < dense[2].tokens


def test_graphs_outside_a_generation_are_refused(base: Manifest) -> None:
    with pytest.raises(ValueError, match="encode is no step"):
        step_work(base, Step("encode"), 1)
