"""Bundles on ONNX Runtime with the attention op from the plugin library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from plugins_trt import loader
from runtime.config import SamplingConfig
from runtime.errors import BackendUnavailableError
from runtime.pipeline import Pipeline
from tests.golden_data import Case, assert_close


@pytest.fixture
def found(ort_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loader, "INSTALLED", ort_library.parent)
    return ort_library


def test_score_and_generate(
    found: Path,
    tiny: Case,
    tiny_bundle: Path,
    tiny_pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered: list[Path] = []
    register = ort.SessionOptions.register_custom_ops_library
    monkeypatch.setattr(
        ort.SessionOptions,
        "register_custom_ops_library",
        lambda self, path: (registered.append(Path(path)), register(self, path)),
    )
    rng = np.random.default_rng(0)
    tokens = [
        rng.integers(0, tiny.config["V"], (2, pn * pn)).astype(np.int32)
        for pn in tiny.config["patch_nums"]
    ]
    with Pipeline.load(tiny_bundle, "ort-cpu", attention="plugin") as pipeline:
        expected, scores = (p.score(tokens, [1, -1]) for p in (tiny_pipeline, pipeline))
        assert set(registered) == {found}
        assert_close("ns", expected.ns_log_prob, scores.ns_log_prob, rms_ratio=1e-5)
        assert_close("mask", expected.mask_log_prob, scores.mask_log_prob, rms_ratio=1e-5)
        sampling = SamplingConfig(top_k=1, mask_schedule=tiny_pipeline.defaults.mask_schedule)
        images = [p.generate([3], sampling=sampling) for p in (tiny_pipeline, pipeline)]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_missing_library(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "INSTALLED", tmp_path)
    monkeypatch.setattr(loader, "BUILT", tmp_path)
    with pytest.raises(BackendUnavailableError, match=r'libhmar_ort\.so: not found .*"function"$'):
        Pipeline.load(tiny_bundle, "ort-cpu", attention="plugin")


def test_library_without_kernels_for_the_gpu(
    found: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="was built for the CPU alone"):
        Pipeline.load(tiny_bundle, "ort-cuda", attention="plugin")
