"""Engines of Hi-MAR's bundle on this machine's GPU, against ONNX Runtime's CPU provider.

    python -m pytest tests/gpu/test_himar_engines.py -v -rs

needs TensorRT (`tensorrt-rtx-cu13`, on an H100 version 1.4.0.76), `cuda.bindings` and the built
plugin library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.trt import TensorRTRunner
from runtime.backends.trt_library import import_tensorrt, installed_flavours
from runtime.backends.wrapped import WrappedRunner
from runtime.bundle import MANIFEST_FILE, Bundle
from runtime.config import BackendConfig
from runtime.engine_cache import build_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import choose_target, local_gpu
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_draws import HiMARDraws, SeededHiMARDraws
from runtime.himar_pipeline import HiMARPipeline
from runtime.pipeline import Pipeline
from tests.golden_data import assert_close
from tests.himar_checkpoints import make_himar_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not installed_flavours(), reason="no TensorRT: pip install tensorrt-rtx-cu13"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None
        or importlib.util.find_spec("cuda.bindings") is None,
        reason="no cuda.bindings: pip install cuda-bindings",
    ),
]

BATCHES = (1, 3)
# fp16: the largest of tests/golden/himar/README.md, "Reduced precision", is 9e-3 for one graph
# (autoencoder) and 1.3e-2 for the tokens of a generation; fp32: TensorRT multiplies in TF32
GRAPH_RMS = {"fp32": 3e-3, "fp16": 1e-2}
TOKENS_RMS = {"fp32": 1e-2, "fp16": 4e-2}
SAMPLING = HiMARSamplingConfig(
    cfg=2.5, re_cfg=2.7, pivot_diffusion_steps="5,3,2,0", dense_diffusion_steps="4,3,3,0"
)
LABELS = [3, 7, -1]
NAMES = (
    *("cond", "pivot_00", "pivot_05", "pivot_15", "dense_00", "dense_02"),
    *("denoise_pivot", "denoise_dense", "decode"),
)


class RecordingRunner(WrappedRunner):
    """Keeps inputs and outputs of the last call of every graph, on the host."""

    def __init__(self, inner: OnnxRuntimeRunner) -> None:
        super().__init__(inner)
        self.calls: dict[str, tuple[dict[str, np.ndarray], list[np.ndarray]]] = {}

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        results = super()._run(graph, feeds)
        given = {name: self.numpy(value) for name, value in feeds.items()}
        self.calls[graph] = given, [self.numpy(value) for value in results]
        return results


class CallByCall:
    """Seeded draws that no backend knows to make itself."""

    def __init__(self, draws: HiMARDraws) -> None:
        self.orders, self.noise, self._draws = draws.orders, draws.noise, draws

    def for_images(self, images: slice, total: int) -> CallByCall:
        return CallByCall(self._draws.for_images(images, total))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp(f"himar-{request.param}")
    bundle = Bundle.open(make_himar_bundle(folder, precision=request.param))
    # modulations are made for the diffusion steps that the manifest has as its default
    sampling = replace(
        bundle.manifest.sampling, pivot_diffusion_steps=SAMPLING.pivot_diffusion_steps
    )
    manifest = replace(bundle.manifest, sampling=sampling)
    (bundle.folder / MANIFEST_FILE).write_text(manifest.to_json())
    bundle = Bundle.open(bundle.folder)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    build_engines(bundle, target, EngineOptions(batches=BATCHES))
    return bundle


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[tuple[RecordingRunner, np.ndarray]]:
    """A generation on the CPU: what every graph was fed, and the dense tokens."""
    runner = RecordingRunner(OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu")))
    with HiMARPipeline(runner, max_batch=3) as pipeline:
        tokens = pipeline.generate_tokens(LABELS, seed=4, sampling=SAMPLING)
        pipeline.decode(tokens.dense)
        yield runner, tokens.dense


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[HiMARPipeline]:
    with Pipeline.load(bundle.folder, "trt") as pipeline:
        assert isinstance(pipeline, HiMARPipeline)
        yield pipeline


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_a_graph(
    bundle: Bundle,
    pipeline: HiMARPipeline,
    reference: tuple[RecordingRunner, np.ndarray],
    name: str,
) -> None:
    feeds, expected = reference[0].calls[name]
    outputs = pipeline.runner.run(name, feeds)
    for (output, value), ref in zip(outputs.items(), expected, strict=True):
        out = pipeline.runner.numpy(value)
        rms = GRAPH_RMS[bundle.manifest.precision]
        assert_close(f"{name} {output}", ref.astype(np.float32), out, rms_ratio=rms)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tokens_of_a_generation(
    bundle: Bundle,
    pipeline: HiMARPipeline,
    reference: tuple[RecordingRunner, np.ndarray],
    count: int,
) -> None:
    """In full and padded batches."""
    assert isinstance(pipeline.runner, TensorRTRunner)
    assert pipeline.runner._loops is not None, "build the plugin library"
    expected, limit = reference[1][:count], TOKENS_RMS[bundle.manifest.precision]
    for _ in range(2):  # captured, and replayed
        tokens = pipeline.generate_tokens(LABELS[:count], seed=4, sampling=SAMPLING)
        assert_close("dense tokens", expected, tokens.dense, rms_ratio=limit)


def test_at_once_is_call_by_call(pipeline: HiMARPipeline) -> None:
    """Also with the pivots' modulations made in one call for all diffusion steps."""
    assert pipeline.runner._loops._modulated == {(10, 2), (10, 6)}
    for seed in (4, 5):
        at_once = pipeline.generate_tokens(LABELS, seed=seed, sampling=SAMPLING)
        draws = CallByCall(SeededHiMARDraws(seed, range(3)))
        calls = pipeline.generate_tokens(LABELS, draws=draws, sampling=SAMPLING)
        for name in ("pivots", "dense"):
            ref, out = getattr(calls, name), getattr(at_once, name)
            assert_close(name, ref, out, rms_ratio=TOKENS_RMS[pipeline.manifest.precision])


def test_images(bundle: Bundle, pipeline: HiMARPipeline) -> None:
    with Pipeline.load(bundle.folder, "ort-cpu") as on_cpu:
        ours, ref = (p.generate(LABELS, seed=4, sampling=SAMPLING) for p in (pipeline, on_cpu))
    assert np.abs(ours.astype(int) - ref).mean() < 2
