"""The trunks by launches: the same as on ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.glue_engine import glue_engines
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.transformer_engine import transformer_engines
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.engine_plan import EngineOptions, plan_engines, resolve
from runtime.errors import BackendUnavailableError
from runtime.pipeline import HMARPipeline
from runtime.transformer_plan import PASSES
from tests.golden_data import assert_close
from tests.host_device import HostDevice, HostKernels, whole_engine
from tests.host_glue import HostGlueKernels
from tests.host_glue import host_table as glue_table
from tests.host_transformer import HostTransformerKernels, host_table

BATCHES = (1, 2)
RMS = 1.5e-3  # float16 rounds every value between the layers; ONNX Runtime rounds others


@pytest.fixture(scope="module")
def bundle(tiny_fp16_bundle: Path) -> Bundle:
    return Bundle.open(tiny_fp16_bundle)


@pytest.fixture(scope="module")
def kernels() -> HostTransformerKernels:
    return HostTransformerKernels(host_table())


@pytest.fixture(scope="module")
def runner(bundle: Bundle, kernels: HostTransformerKernels) -> Iterator[TensorRTRunner]:
    device = HostDevice()
    glue = HostGlueKernels(glue_table(bundle.manifest.hmar.latent_channels))
    engines = {
        **transformer_engines(bundle, kernels, device, BATCHES),
        **glue_engines(bundle, glue, device, BATCHES),
    }
    left = EngineOptions(batches=BATCHES, leave_out=("encode",))
    for spec in plan_engines(bundle.manifest, left):
        engines.setdefault(spec.graph, whole_engine(bundle, spec.graph, spec.profiles))
    runner = TensorRTRunner(bundle.manifest, engines, device, BATCHES, HostKernels())
    yield runner
    runner.close()
    assert not device.blocks


@pytest.mark.parametrize("length", [1, 4, 9, 16])
@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("kind", PASSES)
def test_logits_are_those_of_the_graph(
    bundle: Bundle, runner: TensorRTRunner, kind: str, images: int, length: int
) -> None:
    if kind == "mask_trunk" and length == 1:
        return
    (name,) = (n for n, spec in bundle.manifest.graphs.items() if spec.kind == kind)
    rng, dims = np.random.default_rng(0), {"N": images, "l": length, "blocks_plus_1": 2}
    feeds = {
        tensor.name: rng.standard_normal(resolve(tensor, dims)).astype(tensor.dtype)
        for tensor in bundle.manifest.graphs[name].inputs
    }
    feeds["cu_seqlens"] = np.array([0, length], np.int32)
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    expected = reference.numpy(reference.run(name, feeds)["logits"])
    logits = runner.numpy(runner.run(name, feeds)["logits"])
    assert_close(f"{kind} {dims}", expected, logits, rms_ratio=RMS)


def test_every_kernel_is_used(runner: TensorRTRunner, kernels: HostTransformerKernels) -> None:
    HMARPipeline(runner, max_batch=2).generate([1, 2], seed=4)
    assert kernels.launched == set(kernels.table)


def test_a_whole_generation_is_that_of_the_steps(runner: TensorRTRunner) -> None:
    pipeline = HMARPipeline(runner, max_batch=2)
    at_once = pipeline.generate([1, -1], seed=4)
    steps = pipeline.generate([1, -1], seed=4, on_scale=lambda event: None)
    np.testing.assert_array_equal(at_once, steps)


def test_weights_are_in_memory_once(bundle: Bundle, kernels: HostTransformerKernels) -> None:
    device = HostDevice()
    engines = transformer_engines(bundle, kernels, device, BATCHES)
    assert len(engines) == 2 and len(device.blocks) == 1
    assert sum(e.plan_nbytes for e in engines.values()) == sum(map(len, device.blocks.values()))
    for engine in engines.values():
        engine.close()
    assert not device.blocks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_l2_norm": False}, "normalise queries and keys, this model does not"),
        ({"num_heads": 2}, "heads of 64 .* this model has 2 heads and a width of 256"),
    ],
)
def test_other_models_are_refused(
    bundle: Bundle, kernels: HostTransformerKernels, changes: dict[str, object], message: str
) -> None:
    model = dataclasses.replace(bundle.manifest.hmar, **changes)  # type: ignore[arg-type]
    other = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, model=model))
    with pytest.raises(BackendUnavailableError, match=message):
        transformer_engines(other, kernels, HostDevice(), BATCHES)


def test_a_missing_kernel_is_named(bundle: Bundle) -> None:
    table = {name: entry for name, entry in host_table().items() if "fc2" not in entry["uses"]}
    with pytest.raises(BackendUnavailableError, match="no transformer kernel for fc2"):
        transformer_engines(bundle, HostTransformerKernels(table), HostDevice(), BATCHES)
