"""Hi-MAR's runtime on ONNX Runtime against the golden generations, through the exported bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline
from runtime.himar_profiles import STEPPED
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from scripts.himar_case import CaseDraws, case_sampling
from tests.himar_golden import HiMARCase

TINY = ("nocfg", "linear", "constant", "iter1", "iter12", "only_cfg", "only_re_cfg", "unlabelled")
QUICK = HiMARSamplingConfig(
    num_iter=2, pivot_diffusion_steps="2,1,0,0", dense_diffusion_steps="2,1,0,0"
)


@pytest.fixture(scope="module")
def pipeline(tiny_himar_bundle: Path) -> Iterator[HiMARPipeline]:
    with Pipeline.load(tiny_himar_bundle, "ort-cpu", threads=1) as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        yield pipeline


def labels_of(case: HiMARCase) -> list[int]:
    call = case.json["sampler"]
    return call["labels"] or [-1] * call["bsz"]


def regenerated(pipeline: HiMARPipeline, case: HiMARCase) -> dict[str, np.ndarray]:
    """The arrays of a golden generation, and its orders."""
    sampling, labels, trace = case_sampling(case.json), labels_of(case), Trace()
    model = pipeline.manifest.himar
    draws = CaseDraws(case.json["noise_seed"], sampling, model, len(labels), slice(None))
    pipeline.generate(labels, sampling=sampling, draws=draws, trace=trace)
    P, N = model.num_pivots, model.num_dense
    orders = np.concatenate((draws.orders("pivot", P), P + draws.orders("dense", N)), axis=1)
    return {**trace.arrays(), "orders": orders.astype(np.int32)}


@pytest.mark.parametrize("name", TINY)
def test_golden_generation(pipeline: HiMARPipeline, name: str) -> None:
    case = HiMARCase(f"tiny_a.{name}")
    ours = regenerated(pipeline, case)
    names = {"orders", "p1.mask", "p1.tokens", "p2.mask", "p2.tokens", "small_tokens"}
    if name == "iter1":  # the suite's folder has the images of this one
        names |= {"dense_tokens", "image", "small_image_64"}
    for array in names:
        case.check(array, ours[array])


def test_float16_on_the_cpu_has_the_weights_few_times(tiny_himar_fp16_bundle: Path) -> None:
    """Each session converts them to float32: one a step would take all memory."""
    with Pipeline.load(tiny_himar_fp16_bundle, "ort-cpu") as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        runner = pipeline.runner
        assert isinstance(runner, OnnxRuntimeRunner)
        assert np.isfinite(pipeline.generate_tokens([3], sampling=QUICK).dense).all()
        graphs = [runner.manifest.graphs[name] for name in runner.loaded]
    assert {g.step_idx for g in graphs if g.kind in STEPPED} == {None, 0}


def test_an_image_alone_and_in_a_split_batch(pipeline: HiMARPipeline) -> None:
    three = pipeline.generate_tokens([3, 7, -1], seed=5, sampling=QUICK)
    alone = pipeline.generate_tokens([7], seed=5, image_index=[1], sampling=QUICK)
    for whole, part in ((three.pivots, alone.pivots), (three.dense, alone.dense)):
        np.testing.assert_allclose(whole[1:2], part, atol=1e-4)
        assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_same_seed_same_image(pipeline: HiMARPipeline) -> None:
    images = [pipeline.generate([3], seed=seed, sampling=QUICK) for seed in (1, 1, 2)]
    assert images[0].shape == (1, 128, 128, 3) and images[0].dtype == np.uint8
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_class_vectors_are_as_good_as_classes(pipeline: HiMARPipeline) -> None:
    model = HiMARCase("tiny_a.linear").model
    by_label = pipeline.generate_tokens([3, 7], sampling=QUICK)
    vectors = model.cond([3, 7]).numpy()
    by_vector = pipeline.generate_tokens(cond=vectors, sampling=QUICK)
    np.testing.assert_array_equal(by_label.dense, by_vector.dense)


def test_encode_and_decode(pipeline: HiMARPipeline) -> None:
    vae, rng = HiMARCase("tiny_a.linear").vae, np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 128, 128, 3), np.uint8)
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    with torch.inference_mode():
        tokens = vae.encode(values, torch.zeros(2, 16, 8, 8)).flatten(2).transpose(1, 2)
        decoded = vae.decode(tokens.transpose(1, 2).unflatten(2, (8, 8)))
    ours = pipeline.encode(images)
    np.testing.assert_allclose(ours, tokens, atol=1e-4)
    expected = ((decoded + 1) / 2 * 255).clamp(0, 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(pipeline.decode(ours).astype(int) - expected).max() <= 1
