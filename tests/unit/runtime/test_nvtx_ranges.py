"""NVTX ranges around steps, with stand-ins for the package and for CUDA's library."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from runtime.backends import placement
from runtime.backends.fake import FakeRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.denoising import Denoising
from runtime.diffusion import diffusion_schedule
from runtime.errors import BackendUnavailableError
from runtime.nvtx_ranges import MarkedRunner, find_ranges
from tests.unit.runtime.manifests import himar_manifest, manifest

Log = list[object]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Calls of a stand-in for the package nvtx."""
    calls: Log = []
    nvtx = ModuleType("nvtx")
    nvtx.__dict__.update(push_range=calls.append, pop_range=lambda: calls.append("end"))
    monkeypatch.setitem(sys.modules, "nvtx", nvtx)
    return calls


def fails(spec: object, feeds: object) -> list[np.ndarray]:
    raise RuntimeError("no decoder")


def runner() -> FakeRunner:
    return FakeRunner(manifest(), {"cond": lambda spec, feeds: [np.ones(1)] * 3, "decode": fails})


def test_a_range_per_step_named_after_its_graph(log: Log) -> None:
    marked = MarkedRunner(runner(), find_ranges())
    assert list(marked.run("cond", {"label": np.zeros(1)})) == ["cond", "ada_ns", "ada_mask"]
    with pytest.raises(RuntimeError):
        marked.run("decode", {"f_hat": np.zeros(1)})
    assert log == ["cond", "end", "decode", "end"]


def test_a_range_around_denoising_at_once(log: Log) -> None:
    class AtOnce(FakeRunner):
        def denoise(self, step: Denoising, *arguments: object) -> np.ndarray:
            log.append(step.step_idx)
            return np.zeros((1, 1, 4))

    step = Denoising(
        phase="dense",
        step_idx=3,
        positions=np.zeros((1, 1), np.int64),
        schedule=diffusion_schedule("2"),
        weight=1.0,
        is_guided=False,
        temperature=1.0,
    )
    marked = MarkedRunner(AtOnce(himar_manifest(), {}), find_ranges())
    assert marked.denoise(step, np.zeros(1), [0], 0).shape == (1, 1, 4)
    assert log == ["denoise_dense_unguided", 3, "end"]


@pytest.mark.parametrize("nvtx", [False, True])
def test_only_where_asked_for(
    log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvtx: bool
) -> None:
    monkeypatch.setattr(placement, "_load", lambda bundle, config: runner())
    made = placement.load_runner(Bundle(tmp_path, manifest()), BackendConfig(nvtx=nvtx))
    made.run("cond", {"label": np.zeros(1)})
    assert type(made) is (MarkedRunner if nvtx else FakeRunner)
    assert log == (["cond", "end"] if nvtx else [])


def test_the_library_of_cuda_serves_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Log = []
    library = SimpleNamespace(nvtxRangePushA=calls.append, nvtxRangePop=lambda: calls.append("end"))

    def load(name: str) -> SimpleNamespace:
        if name != "libnvToolsExt.so.1":
            raise OSError(name)
        return library

    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    ranges = find_ranges()
    ranges.push("ns")
    ranges.pop()
    assert calls == [b"ns", "end"]


def test_nothing_to_mark_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str) -> None:
        raise OSError(name)

    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(BackendUnavailableError, match=r"libnvtx3interop.*pip install nvtx"):
        placement.load_runner(Bundle(tmp_path, manifest()), BackendConfig(nvtx=True))
