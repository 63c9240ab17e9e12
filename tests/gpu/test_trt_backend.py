"""The backend trt on a GPU: engines of the demo checkpoint, against ONNX Runtime and PyTorch.

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

from export import ExportConfig, export_bundle, verify_bundle
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
from tests.golden_data import assert_close

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

DEMO = Path(__file__).resolve().parents[2] / "demo"
CKPT, VAE = DEMO / "hmar.safetensors", DEMO / "tokenizer.safetensors"
BATCHES = (1, 3)
# TensorRT-RTX 1.4 multiplies float32 in TF32 on an H100, though the flag is cleared
RMS = 3e-3
# a token may differ where the two best logits are this close
FLIP_GAP = 0.05
GRAPHS = (
    *("cond", "ns_s00_pn01", "ns_s03_pn04", "mask_s02_pn03", "mask_input_s02_pn03"),
    *("quant_s01_pn02", "encode", "decode"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    settings = {"class_names": DEMO / "classes.json", "sampling": DEMO / "sampling.json"}
    export_bundle(ExportConfig(verify=False), [CKPT], VAE, folder, **settings)
    bundle = Bundle.open(folder)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    build_engines(bundle, target, EngineOptions(batches=BATCHES, guidance="any"))
    return bundle


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(bundle.folder, "trt") as pipeline:
        assert pipeline.max_batch == max(BATCHES)
        yield pipeline


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(bundle.folder, "ort-cpu") as pipeline:
        yield pipeline


def make_feeds(bundle: Bundle, graph: str, batch: int) -> dict[str, np.ndarray]:
    """Random inputs of a graph."""
    rng, model = np.random.default_rng(0), bundle.manifest.hmar
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
            assert (ref == out).mean() > 0.9, name  # nearest codes may tie
        elif graph == "encode":
            continue  # f_hat follows the tokens
        else:
            assert_close(f"{graph}.{name}", ref, out, rms_ratio=RMS, max_abs=0.1)


@pytest.fixture(scope="module")
def staged(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The bundle with decoder and encoder in stages, whether or not they run whole here."""
    folder = tmp_path_factory.mktemp("staged")
    for path in bundle.folder.iterdir():
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
@pytest.mark.parametrize("graph", ["encode", "decode"])  # of STAGED, what HMAR has
def test_stages_run_as_the_graph(bundle: Bundle, staged: Pipeline, graph: str, batch: int) -> None:
    compare_with_onnx_runtime(bundle, staged, graph, batch)


def test_tokens_are_those_of_pytorch(bundle: Bundle, pipeline: Pipeline) -> None:
    certificate = verify_bundle(bundle.folder, [CKPT], VAE, runner=pipeline.runner)
    assert certificate.agreement("argmax") >= 0.99, certificate.table()
    # where a thousand tokens are about as likely, a draw moves with any of their probabilities
    assert certificate.agreement("drawn") >= 0.85, certificate.table()
    gaps = [gap for tokens in certificate.tokens for gap in tokens.flip_gaps]
    assert max(gaps, default=0.0) < FLIP_GAP, certificate.table()


def test_seeded_images_are_those_of_onnx_runtime(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    # the same picture but where a token fell on the other side of an edge
    labels = [1, 2, 3, 4, 5]  # more than fit into one pass
    likeliest = dataclasses.replace(pipeline.defaults, top_k=1)
    ours, reference = (p.generate(labels, seed=5, sampling=likeliest) for p in (pipeline, on_cpu))
    error = np.abs(ours.astype(int) - reference).mean(axis=(1, 2, 3))
    assert np.median(error) < 2


@pytest.mark.parametrize("cfg", [0.0, 3.0])
def test_a_whole_generation_is_that_of_the_steps(pipeline: Pipeline, cfg: float) -> None:
    assert pipeline.runner._generations is not None, "build the plugin library"
    sampling = dataclasses.replace(pipeline.defaults, cfg=cfg, top_k=1)
    labels = [1, 2, 3, 4, 5]
    for seed in (5, 6):  # captured, and replayed
        at_once = pipeline.generate(labels, seed=seed, sampling=sampling)
        steps = pipeline.generate(labels, seed=seed, sampling=sampling, on_scale=lambda event: None)
        # parts of a batch are padded, so that other profiles can run: single tokens may differ
        assert np.median(np.abs(at_once.astype(int) - steps).mean(axis=(1, 2, 3))) < 2


def test_an_image_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    likeliest = dataclasses.replace(pipeline.defaults, top_k=1)
    together = pipeline.generate([1, 2, 3], seed=5, sampling=likeliest)
    alone = [
        pipeline.generate([i + 1], seed=5, image_index=[i], sampling=likeliest)[0] for i in range(3)
    ]
    # engines for other batches may sum in another order
    assert np.median(np.abs(together.astype(int) - alone).mean(axis=(1, 2, 3))) < 2


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
