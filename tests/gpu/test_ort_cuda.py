"""The backend ort-cuda: tokens of the CPU, values and weights that stay on the GPU.

    python -m pytest tests/gpu/test_ort_cuda.py -v -rs

needs onnxruntime-gpu, with the CUDA and cuDNN that it was built for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime.backends.onnxrt import PROVIDERS, OnnxRuntimeRunner
from runtime.bundle import STORED_AS, Bundle
from runtime.config import BackendConfig
from runtime.pipeline import Pipeline
from tests.cases import run_pipeline
from tests.golden_data import Case, assert_close
from tests.trace_check import compare_trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        PROVIDERS["ort-cuda"] not in onnxruntime.get_available_providers(),
        reason="needs onnxruntime-gpu",
    ),
]

TINY = Case("tiny")
# widens the golden traces' limits on numbers: sums in another order than PyTorch's on the CPU
SLACK = 10.0


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, "ort-cuda", max_batch=3) as pipeline:
        yield pipeline


@pytest.mark.parametrize("name", TINY.traces)
def test_trajectory_has_the_golden_tokens(pipeline: Pipeline, name: str) -> None:
    entry, golden = TINY.trace(name)
    ours = run_pipeline(pipeline, entry, golden)
    image = golden.pop("image", None)
    compare_trace(golden, ours, slack=SLACK)
    if image is not None:
        assert_close("image", image, ours["image"], rms_ratio=1e-4, max_abs=1e-2)


def test_seeded_images_are_those_of_the_cpu(pipeline: Pipeline, tiny_pipeline: Pipeline) -> None:
    labels = [1, 2, 3, 4, 5]  # more than fit into one pass
    ours, reference = (p.generate(labels, seed=5) for p in (pipeline, tiny_pipeline))
    assert np.abs(ours.astype(int) - reference).max() <= 1


def test_images_repeat_in_another_pipeline(pipeline: Pipeline, tiny_bundle: Path) -> None:
    images = pipeline.generate([1, 2, 3], seed=5)
    with Pipeline.load(tiny_bundle, "ort-cuda", max_batch=3) as other:
        np.testing.assert_array_equal(other.generate([1, 2, 3], seed=5), images)


def test_outputs_stay_on_the_gpu(pipeline: Pipeline) -> None:
    outputs = pipeline.runner.run("cond", {"label": np.array([1, 2], np.int32)})
    assert {value.device_name() for value in outputs.values()} == {"cuda"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sessions_use_the_weights_in_place(precision: str, request: pytest.FixtureRequest) -> None:
    """A weight that is overwritten changes what a session made before computes."""
    bundle = Bundle.open(
        request.getfixturevalue("tiny_bundle" if precision == "fp32" else "tiny_bf16_bundle")
    )
    runner = OnnxRuntimeRunner(bundle, BackendConfig(name="ort-cuda"))
    (graph,) = (n for n, s in bundle.manifest.graphs.items() if (s.kind, s.scale_idx) == ("ns", 0))
    spec = bundle.manifest.graphs[graph]
    cond = runner.run("cond", {"label": np.array([1, 2], np.int32)})
    feeds = {i.name: cond[i.name] for i in spec.inputs}

    def logits() -> np.ndarray:
        return runner.numpy(runner.run(graph, feeds)["logits"])

    def overwrite(name: str, zero: bool) -> None:
        tensor = bundle.manifest.tensors[name]
        dtype = np.dtype(STORED_AS[tensor.dtype])
        values = np.fromfile(weights, dtype, np.prod(tensor.shape), offset=tensor.offset)
        runner._weights[name].update_inplace(values.reshape(tensor.shape) * dtype.type(not zero))

    weights, before = bundle.path(bundle.manifest.weights), logits()
    model = onnx.load(bundle.path(spec), load_external_data=False)
    held = {i.name for i in model.graph.initializer} & set(runner._weights)
    matrices = [n for n in sorted(held) if len(bundle.manifest.tensors[n].shape) == 2]
    assert matrices
    for name in matrices:
        overwrite(name, zero=True)
        assert not np.array_equal(logits(), before), name
        overwrite(name, zero=False)
    np.testing.assert_array_equal(logits(), before)
    runner.close()


def test_closing_one_pipeline_leaves_another(pipeline: Pipeline, tiny_bundle: Path) -> None:
    images = pipeline.generate([1], seed=1)
    with Pipeline.load(tiny_bundle, "ort-cuda") as other:
        other.generate([1], seed=1)
    np.testing.assert_array_equal(pipeline.generate([1], seed=1), images)
