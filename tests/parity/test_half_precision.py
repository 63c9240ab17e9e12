"""fp16 and bf16 bundles: agreement with float32, and honesty about what was not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.tensors import lay_out
from export.torch_steps import TorchSteps
from export.weights import WeightsFile
from hmar import reference
from runtime.errors import BackendError
from runtime.pipeline import Pipeline
from runtime.trajectory import condition
from tests.golden_data import Case


def certificate(bundle: Path) -> dict:
    return json.loads((bundle / "certificate.json").read_text())


def test_fp16_agrees_with_float32(tiny_fp16_bundle: Path) -> None:
    tokens = certificate(tiny_fp16_bundle)["tokens"]
    agreement = sum(t["argmax_equal"] for t in tokens) / sum(t["compared"] for t in tokens)
    assert agreement >= 0.995
    assert all(len(t["flip_gaps"]) == t["compared"] - t["argmax_equal"] for t in tokens)


def test_tiny_fp16_bundle_generates_the_same_picture_twice(tiny_fp16_bundle: Path) -> None:
    with Pipeline.load(tiny_fp16_bundle, "ort-cpu") as pipeline:
        first, second = (pipeline.generate([1, -1, 2], seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_fp16_error_is_within_twice_pytorchs(tiny_fp16_bundle: Path) -> None:
    case, k = Case("tiny"), 2
    model, golden = case.model, case.modules
    weights = WeightsFile("weights.bin")
    lay_out(weights, model, case.tokenizer, torch.float16)
    label_N = reference.guided_labels(model, golden["tf_labels"].tolist()).int()
    map_Nlc = torch.from_numpy(golden["tf_s1_next"]).flatten(2).transpose(1, 2).repeat(2, 1, 1)
    half = TorchSteps(model.config, weights).logits(
        "ns", {"map": map_Nlc}, label_N, model.config.scale_slices()[k]
    )
    with Pipeline.load(tiny_fp16_bundle, "ort-cpu") as pipeline:
        runner = pipeline.runner
        feeds = {**condition(runner, label_N.tolist()), "map": map_Nlc.numpy()}
        inputs = {i.name for i in runner.manifest.graphs["ns_s02_pn03"].inputs}
        out = runner.run("ns_s02_pn03", {n: v for n, v in feeds.items() if n in inputs})
        ours = runner.numpy(out["logits"])
    exact = golden["tf_s2_ns_logits"]
    error, baseline = (np.sqrt(np.mean((x - exact) ** 2)) for x in (ours, half.numpy()))
    assert 0 < error <= 2 * baseline


def test_bf16_says_what_the_cpu_provider_cannot_run(tiny_bf16_bundle: Path) -> None:
    report = certificate(tiny_bf16_bundle)
    not_run = {n for n, g in report["graphs"].items() if g["not_run"]}
    assert "ns_s03_pn04" in not_run and "quant_s03_pn04" not in not_run
    assert "bfloat16 kernel" in report["graphs"]["ns_s03_pn04"]["not_run"]
    assert "same modules in bf16" in report["token_engine"]
    tokens = report["tokens"]
    assert sum(t["argmax_equal"] for t in tokens) / sum(t["compared"] for t in tokens) > 0.9
    with (
        Pipeline.load(tiny_bf16_bundle, "ort-cpu") as pipeline,
        pytest.raises(BackendError, match="lacks bfloat16 kernels"),
    ):
        pipeline.generate([1])
