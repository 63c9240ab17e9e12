"""The backend trt on a GPU: engines built here, against ONNX Runtime in float32 and golden tokens.

    python -m pytest tests/gpu/test_trt_backend.py -v -rs

needs TensorRT (`tensorrt-rtx-cu13`, on an H100 version 1.4.0.76) and `cuda.bindings`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.cuda import CudaDevice
from runtime.backends.onnxrt import OnnxRuntimeRunner
from runtime.backends.trt_library import import_tensorrt, installed_flavours
from runtime.bundle import STORED_AS, Bundle, TensorSpec
from runtime.config import BackendConfig
from runtime.engine_cache import build_engines
from runtime.engine_manifest import FUNCTION_BODY, EngineFolder
from runtime.engine_plan import ATTENTION_KINDS, STAGED, EngineOptions, resolve
from runtime.engine_target import choose_target, local_gpu
from runtime.errors import EngineIncompatibleError
from runtime.pipeline import Pipeline
from tests.cases import run_pipeline
from tests.golden_data import Case, assert_close
from tests.trace_check import compare_trace

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

TINY = Case("tiny")
BATCHES = (1, 3)
# widens the golden traces' limits on numbers: sums in another order than PyTorch's on the CPU
SLACK = 10.0
GRAPHS = (
    *("cond", "ns_s00_pn01", "ns_s03_pn04", "mask_s02_pn03", "mask_input_s02_pn03"),
    *("quant_s01_pn02", "encode", "decode"),
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    bundle = Bundle.open(tiny_bundle)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    build_engines(bundle, target, EngineOptions(batches=BATCHES, guidance="any"))
    return bundle


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(bundle.folder, "trt") as pipeline:
        assert pipeline.max_batch == max(BATCHES)
        yield pipeline


def make_feeds(bundle: Bundle, graph: str, batch: int) -> dict[str, np.ndarray]:
    """Random inputs of a graph."""
    rng, model = np.random.default_rng(0), bundle.manifest.model
    dims = {"B": batch, "N": 2 * batch}

    def make(spec: TensorSpec) -> np.ndarray:
        shape = resolve(spec, dims)
        if spec.dtype == "bool":
            return rng.integers(0, 2, shape).astype(np.bool_)
        if spec.dtype == "int32":
            high = model.num_classes + 1 if spec.name == "label" else model.vocab_size
            return rng.integers(0, high, shape).astype(np.int32)
        if spec.name == "image":
            return rng.random(shape).astype(np.float32)
        return (0.5 * rng.normal(size=shape)).astype(STORED_AS[spec.dtype])

    return {spec.name: make(spec) for spec in bundle.manifest.graphs[graph].inputs}


@pytest.mark.parametrize("batch", [1, 2, 3], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_of_a_graph_are_those_of_onnx_runtime(
    bundle: Bundle, pipeline: Pipeline, graph: str, batch: int
) -> None:
    compare_with_onnx_runtime(bundle, pipeline, graph, batch)


def compare_with_onnx_runtime(bundle: Bundle, pipeline: Pipeline, graph: str, batch: int) -> None:
    feeds = make_feeds(bundle, graph, batch)
    reference = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cpu"))
    expected = reference.run(graph, feeds)
    outputs = pipeline.runner.run(graph, feeds)
    for name, value in expected.items():
        ref, out = reference.numpy(value), pipeline.runner.numpy(outputs[name])
        if ref.dtype == np.int32:
            assert (ref == out).mean() > 0.95, name  # nearest codes may tie
        elif graph == "encode":
            continue  # f_hat follows the tokens
        else:
            # float32 with sums in another order; TF32, which is off, would give 1e-3
            assert_close(f"{graph}.{name}", ref, out, rms_ratio=1e-4, max_abs=1e-2)


@pytest.fixture(scope="module")
def staged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The bundle with decoder and encoder in stages, whether or not they run whole here."""
    folder = tmp_path_factory.mktemp("staged")
    for path in tiny_bundle.iterdir():
        if path.name != "engines":
            (folder / path.name).symlink_to(path)
    bundle = Bundle.open(folder)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    others = {spec.kind for spec in bundle.manifest.graphs.values()} - set(STAGED)
    options = EngineOptions(
        batches=BATCHES, leave_out=tuple(sorted(others)), stages=dict.fromkeys(STAGED, 6)
    )
    engines = build_engines(bundle, target, options).engines.manifest.engines
    assert all(len(entry.plans) >= 6 for entry in engines.values())
    placement = dict.fromkeys(others, "ort-cpu")
    with Pipeline.load(bundle.folder, "trt", placement=placement) as pipeline:
        yield pipeline


@pytest.mark.parametrize("batch", [1, 2, 3], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("graph", STAGED)
def test_stages_run_as_the_graph(bundle: Bundle, staged: Pipeline, graph: str, batch: int) -> None:
    compare_with_onnx_runtime(bundle, staged, graph, batch)


@pytest.mark.parametrize("name", [n for n in TINY.traces if "kvcache" not in n])
def test_trajectory_has_the_golden_tokens(pipeline: Pipeline, name: str) -> None:
    entry, golden = TINY.trace(name)
    ours = run_pipeline(pipeline, entry, golden)
    image = golden.pop("image", None)
    compare_trace(golden, ours, slack=SLACK)
    if image is not None:
        assert_close("image", image, ours["image"], rms_ratio=1e-4, max_abs=1e-2)


def test_seeded_images_are_those_of_onnx_runtime(
    pipeline: Pipeline, tiny_pipeline: Pipeline
) -> None:
    labels = [1, 2, 3, 4, 5]  # more than fit into one pass
    ours, reference = (p.generate(labels, seed=5) for p in (pipeline, tiny_pipeline))
    assert np.abs(ours.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("cfg", [0.0, 3.0])
def test_a_whole_generation_is_that_of_the_steps(pipeline: Pipeline, cfg: float) -> None:
    assert pipeline.runner._generations is not None, "build the plugin library"
    sampling = dataclasses.replace(pipeline.defaults, cfg=cfg)
    labels = [1, 2, 3, 4, 5]
    for seed in (5, 6):  # captured, and replayed
        at_once = pipeline.generate(labels, seed=seed, sampling=sampling)
        steps = pipeline.generate(labels, seed=seed, sampling=sampling, on_scale=lambda event: None)
        assert np.abs(at_once.astype(int) - steps).max() <= 1


def test_an_image_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    together = pipeline.generate([1, 2, 3], seed=5)
    alone = pipeline.generate([2], seed=5, image_index=[1])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1


def test_compiled_kernels_are_kept(bundle: Bundle) -> None:
    with Pipeline.load(bundle.folder, "trt") as pipeline:
        pipeline.generate([1], seed=0)
    if not import_tensorrt().is_rtx:
        pytest.skip("only TensorRT-RTX compiles kernels when it loads an engine")
    assert list(bundle.folder.glob("engines/*/ns_trunk.*.kernels"))


def test_two_pipelines_in_one_process(bundle: Bundle) -> None:
    with (
        Pipeline.load(bundle.folder, "trt") as first,
        Pipeline.load(bundle.folder, "trt") as second,
    ):
        images = [p.generate([1, 2], seed=1) for p in (first, second, first)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_closing_gives_the_memory_back(bundle: Bundle) -> None:
    device = CudaDevice()
    used = []
    for _ in range(3):
        with Pipeline.load(bundle.folder, "trt") as pipeline:
            pipeline.generate([1], seed=1)
        used.append(device.memory()[0])
    device.close()
    assert used[-1] >= used[0] - (16 << 20)


def test_a_batch_beyond_the_engines_is_named(pipeline: Pipeline) -> None:
    with pytest.raises(EngineIncompatibleError, match="no profile for"):
        pipeline.runner.run("cond", {"label": np.zeros(2 * max(BATCHES) + 1, np.int32)})


def test_all_attention_is_the_function_body(bundle: Bundle, pipeline: Pipeline) -> None:
    (folder,) = bundle.folder.glob("engines/*")
    engines = EngineFolder.open(folder).manifest.engines
    for graph, entry in engines.items():
        kind = bundle.manifest.graphs[graph].kind
        assert entry.attention == (FUNCTION_BODY if kind in ATTENTION_KINDS else None)
        assert entry.activation_nbytes is not None
