"""The parts of the benchmarks that need a GPU: compiled passes in CUDA graphs, layers, spans.

    python -m pytest tests/gpu/test_bench.py -v -rs

The engines need TensorRT (`tensorrt-rtx-cu13`, on an H100 version 1.4.0.76) and `cuda.bindings`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hmar.reference import ReferenceConfig
from runtime.backends.trt import TensorRTRunner
from runtime.backends.trt_library import import_tensorrt, installed_flavours
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.engine_cache import build_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import choose_target, local_gpu
from runtime.timing import TimedRunner
from scripts.generation_rivals import TorchGenerator
from scripts.machine import device_bytes, gpu_name
from scripts.profile_step import profile_layers, random_feeds
from tests.cases import write_files
from tests.golden_data import Case

pytestmark = pytest.mark.gpu
DIMS = {"N": 2, "l": 16, "blocks_plus_1": 2}


def test_compiled_and_replayed_passes_give_the_same_logits(tmp_path: Path) -> None:
    files = write_files(tmp_path, Case("tiny"))
    rival = TorchGenerator.load(files.ckpt, files.vae, "cuda", "fp16")
    model = rival.model
    with torch.inference_mode(), torch.device("cuda"):
        cond = model.cond(torch.tensor([1, 10]))
        inputs = [
            ("ns", torch.randn(2, n, model.config.embed_dim).half()) for n in (1, 4, 9, 16)
        ] + [("mask", torch.randn(2, 9, model.config.embed_dim).half())]
        expected = [model(x, cond, branch) for branch, x in inputs]
        rival.compile()
        for _ in range(2):  # captured, then replayed
            for (branch, x), reference in zip(inputs, expected, strict=True):
                logits = model(x, cond, branch)
                # half-precision sums in another order
                assert (logits - reference).norm() < 0.02 * reference.norm()
    images = rival([1, 2], ReferenceConfig(top_k=8, mask_schedule=[[1], [1, 3], [9], [16]]))
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.uint8


@pytest.fixture(scope="module")
def runner(tiny_bundle: Path) -> TensorRTRunner:
    if not installed_flavours():
        pytest.skip("no TensorRT: pip install tensorrt-rtx-cu13")
    pytest.importorskip("cuda.bindings", reason="no cuda.bindings: pip install cuda-bindings")
    bundle = Bundle.open(tiny_bundle)
    target = choose_target(import_tensorrt(), (), local_gpu(), attention="function")
    build_engines(bundle, target, EngineOptions(batches=(1,), leave_out=("decode", "encode")))
    return TensorRTRunner.load(bundle, BackendConfig(name="trt"))


def test_steps_are_timed_by_events(runner: TensorRTRunner) -> None:
    timed = TimedRunner(runner)
    feeds = random_feeds(runner.manifest.graphs["ns_trunk"], DIMS)
    timed.run("ns_trunk", feeds)
    timed.start()
    for _ in range(3):
        timed.run("ns_trunk", feeds)
    steps = [span for span in timed.spans() if span.track == "step"]
    assert len(steps) == 3 and all(0 < step.ms < 1000 for step in steps)
    starts = [step.start_ms for step in steps]
    assert starts == sorted(starts) and starts[0] >= 0


def test_layers_of_an_engine_are_reported(runner: TensorRTRunner) -> None:
    count, *layers = profile_layers(runner, "ns_trunk", DIMS, runs=5).export()
    assert count == {"count": 5} and layers
    assert np.isclose(sum(layer["percentage"] for layer in layers), 100)


def test_the_gpu_is_described() -> None:
    pytest.importorskip("cuda.bindings", reason="no cuda.bindings: pip install cuda-bindings")
    assert gpu_name() == torch.cuda.get_device_name()
    held = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    used = device_bytes()
    assert used is not None and used >= held.nbytes
