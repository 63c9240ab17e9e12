"""The decoder's kernels, which PyTorch stands in for, run as the graph `decode` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.decoder_engine import decoder_engines
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.planned_engine import PlannedEngine
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle, WeightSpec
from runtime.config import BackendConfig
from runtime.decoder_plan import read_sizes
from runtime.engine_plan import EngineOptions, plan_engines
from runtime.errors import BackendUnavailableError
from runtime.pipeline import HMARPipeline
from tests.golden_data import assert_close
from tests.host_decoder import HostDecoderKernels, host_table
from tests.host_device import HostDevice, HostKernels, whole_engine

BATCHES = (1, 3)
# maps are rounded to float16, which ONNX Runtime's CPU provider seldom does: measured up to 2.7e-3,
# and 2.4e-3 for PyTorch in float16
RMS = 4e-3


@pytest.fixture(scope="module")
def bundle(tiny_fp16_bundle: Path) -> Bundle:
    return Bundle.open(tiny_fp16_bundle)


@pytest.fixture(scope="module")
def kernels(bundle: Bundle) -> HostDecoderKernels:
    return HostDecoderKernels(host_table(read_sizes(bundle.manifest, "decode")))


@pytest.fixture(scope="module")
def decoder(bundle: Bundle, kernels: HostDecoderKernels) -> PlannedEngine:
    return decoder_engines(bundle, kernels, HostDevice(), BATCHES)["decode"]


@pytest.fixture(scope="module")
def runner(bundle: Bundle, decoder: PlannedEngine) -> Iterator[TensorRTRunner]:
    engines = {
        spec.graph: whole_engine(bundle, spec.graph, spec.profiles)
        for spec in plan_engines(bundle.manifest, EngineOptions(batches=BATCHES))
    }
    engines["decode"] = decoder
    runner = TensorRTRunner(bundle.manifest, engines, HostDevice(), BATCHES, HostKernels())
    yield runner
    runner.close()


def f_hat(bundle: Bundle, batch: int) -> np.ndarray:
    (spec,) = bundle.manifest.graphs["decode"].inputs
    shape = (batch, *map(int, spec.shape[1:]))
    return np.random.default_rng(batch).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3], ids=lambda b: f"B{b}")
def test_images_are_those_of_the_graph(bundle: Bundle, runner: TensorRTRunner, batch: int) -> None:
    feeds = {"f_hat": f_hat(bundle, batch)}
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    expected = reference.numpy(reference.run("decode", feeds)["image"])
    image = runner.numpy(runner.run("decode", feeds)["image"])
    assert_close("image", expected - 0.5, image - 0.5, rms_ratio=RMS)


def test_a_whole_generation_is_that_of_the_steps(runner: TensorRTRunner) -> None:
    pipeline = HMARPipeline(runner, max_batch=3)
    at_once = pipeline.generate([1], seed=4)
    steps = pipeline.generate([1], seed=4, on_scale=lambda event: None)
    np.testing.assert_array_equal(at_once, steps)


@pytest.mark.parametrize("graph", ["decode", "decode_pivot"])
def test_images_of_tokens_are_those_of_the_graph(tiny_himar_fp16_bundle: Path, graph: str) -> None:
    """Hi-MAR's autoencoder, for both grids."""
    bundle = Bundle.open(tiny_himar_fp16_bundle)
    kernels = HostDecoderKernels(host_table(read_sizes(bundle.manifest, graph)))
    device = HostDevice()
    engines = decoder_engines(bundle, kernels, device, BATCHES)
    assert engines.keys() == {"decode", "decode_pivot"}
    runner = TensorRTRunner(bundle.manifest, engines, device, BATCHES)
    (spec,) = bundle.manifest.graphs[graph].inputs
    shape = (2, *map(int, spec.shape[1:]))
    # with values beyond black and white, which are kept
    feeds = {"tokens": np.random.default_rng(0).normal(size=shape).astype(np.float32) * 0.4}
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    expected = reference.numpy(reference.run(graph, feeds)["image"])
    image = runner.numpy(runner.run(graph, feeds)["image"])
    assert_close("image", expected - 0.5, image - 0.5, rms_ratio=RMS)
    runner.close()
    assert not device.blocks


def test_layers_are_timed(
    bundle: Bundle, runner: TensorRTRunner, kernels: HostDecoderKernels
) -> None:
    layers: list[tuple[str, float]] = []
    runner.report_layers("decode", lambda name, ms: layers.append((name, ms)))
    runner.run("decode", {"f_hat": f_hat(bundle, 1)})
    assert [name for name, _ in layers] == kernels.launched[-len(layers) :]
    assert layers[0][0].startswith("from_planes") and layers[-1][0].startswith("to_image")
    assert all(ms >= 0 for _, ms in layers)


def test_closing_frees_the_weights(bundle: Bundle, kernels: HostDecoderKernels) -> None:
    device = HostDevice()
    engine = decoder_engines(bundle, kernels, device, BATCHES)["decode"]
    assert sum(map(len, device.blocks.values())) == engine.plan_nbytes
    engine.close()
    assert not device.blocks


def test_a_decoder_of_another_structure_is_refused(
    bundle: Bundle, kernels: HostDecoderKernels
) -> None:
    manifest = bundle.manifest
    extra = {"decoder.mid.attn_2.norm.weight": WeightSpec("float16", (4,), 0)}
    other = dataclasses.replace(manifest, tensors={**manifest.tensors, **extra})
    with pytest.raises(BackendUnavailableError, match=r"attn_2\.norm\.weight of no shape, the bun"):
        decoder_engines(Bundle(bundle.folder, other), kernels, HostDevice(), BATCHES)


def test_a_decoder_in_float32_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"compute in float16, .* has float32"):
        read_sizes(Bundle.open(tiny_bundle).manifest, "decode")
