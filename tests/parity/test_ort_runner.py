"""The ONNX Runtime runner: bound outputs against plain runs, and what is said where CUDA fails."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from runtime.backends import onnxrt
from runtime.backends.onnxrt import OUT_OF_MEMORY, PROVIDERS, OnnxRuntimeRunner
from runtime.backends.placement import load_runner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.errors import BackendUnavailableError, DeviceMemoryError
from runtime.pipeline import Pipeline

CPU, CUDA = BackendConfig(name="ort-cpu"), BackendConfig(name="ort-cuda")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def offers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that offers CUDA and has none, as where cuDNN is missing."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [PROVIDERS["ort-cuda"], "CPU"]
    )


def plain(bundle: Bundle, graph: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    path = bundle.path(bundle.manifest.graphs[graph])
    return onnxruntime.InferenceSession(path, providers=[PROVIDERS["ort-cpu"]]).run(None, feeds)


def test_bound_outputs_are_those_of_a_plain_run_and_feed_the_next_graph(bundle: Bundle) -> None:
    runner, model = OnnxRuntimeRunner(bundle, CPU), bundle.manifest.hmar
    P = model.patch_nums[-1]
    tokens_B11 = np.array([[[3]], [[5]]], np.int32)
    f_hat_BCHW = np.ones((2, model.latent_channels, P, P), np.float32)
    feeds = {"tokens": tokens_B11, "f_hat": f_hat_BCHW}
    outputs = runner.run("quant_s00_pn01", feeds)
    first = plain(bundle, "quant_s00_pn01", feeds)
    for value, expected in zip(outputs.values(), first, strict=True):
        assert isinstance(value, onnxruntime.OrtValue) and value.device_name() == "cpu"
        np.testing.assert_array_equal(runner.numpy(value), expected)
    # a value is fed on as it is, and stays what it is
    images = [runner.run("decode", {"f_hat": outputs["f_hat_out"]})["image"] for _ in range(2)]
    (expected,) = plain(bundle, "decode", {"f_hat": first[0]})
    for image in images:
        np.testing.assert_allclose(runner.numpy(image), expected, atol=1e-6)
    np.testing.assert_array_equal(runner.numpy(outputs["f_hat_out"]), first[0])


def test_two_pipelines_in_one_process(bundle: Bundle) -> None:
    with (
        Pipeline.load(bundle.folder, "ort-cpu") as first,
        Pipeline.load(bundle.folder, "ort-cpu") as second,
    ):
        images = [p.generate([1, 2], seed=1) for p in (first, second, first)]
        first.close()
        images.append(second.generate([1, 2], seed=1))
    for one, other in itertools.pairwise(images):
        np.testing.assert_array_equal(one, other)


def test_graphs_placed_where_the_others_are_share_their_runner(bundle: Bundle) -> None:
    config = BackendConfig(name="auto", placement={"decode": "ort-cpu", "encode": "auto"})
    assert load_runner(bundle, config).name == "ort-cpu"


@pytest.mark.usefixtures("offers_cuda")
def test_a_gpu_that_cannot_be_used(bundle: Bundle) -> None:
    message = (
        r"ort-cuda: the weights cannot be put on the GPU: .*cuDNN .*or use the backend ort-cpu"
    )
    with pytest.raises(BackendUnavailableError, match=message):
        OnnxRuntimeRunner(bundle, CUDA)


@pytest.mark.usefixtures("offers_cuda")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_sessions_that_fall_back_to_the_cpu_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnxrt.DEVICES, "ort-cuda", "cpu")
    runner = OnnxRuntimeRunner(bundle, CUDA)
    with pytest.raises(
        BackendUnavailableError, match="ort-cuda: ONNX Runtime runs cond on CPUExecutionProvider"
    ):
        runner.run("cond", {"label": np.zeros(2, np.int32)})


def test_out_of_memory_is_told_from_other_failures(bundle: Bundle) -> None:
    def fails() -> None:
        raise RuntimeError(f"bfc_arena.cc: {OUT_OF_MEMORY} for requested buffer of size 7")

    runner = OnnxRuntimeRunner(bundle, CPU)
    runner._sessions["cond"] = SimpleNamespace(io_binding=fails)
    with pytest.raises(
        DeviceMemoryError, match=r"graph cond: .* smaller max_batch, or free memory"
    ):
        runner.run("cond", {"label": np.zeros(2, np.int32)})
