"""Engines of Hi-MAR's graphs, built and run on this machine's GPU, against ONNX Runtime's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_data import assert_close
from tests.himar_checkpoints import make_himar_bundle
from tests.himar_golden import HiMARCase
from tests.himar_graphs import Graphs, generation_arrays
from tests.tensorrt_build import build_engine

pytestmark = [pytest.mark.gpu, pytest.mark.trt]

# fp16: the largest of tests/golden/himar/README.md, "Reduced precision", is 9e-3 (autoencoder);
# fp32: TensorRT may multiply in TF32
RMS_RATIO = {"fp32": 1e-3, "fp16": 1e-2}
NAMES = ("pivot_00", "pivot_05", "dense_00", "dense_02", "denoise_pivot", "denoise_dense", "decode")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "int32")}


class RecordedGraphs(Graphs):
    """Keeps inputs and outputs of the last call of every graph."""

    calls: dict[str, tuple[dict[str, Tensor], list[Tensor]]]

    def run(self, name: str, **feeds: Tensor) -> list[Tensor]:
        outputs = super().run(name, **feeds)
        self.calls[name] = feeds, outputs
        return outputs


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def graphs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, RecordedGraphs]:
    folder = tmp_path_factory.mktemp("himar")
    graphs = RecordedGraphs(make_himar_bundle(folder, precision=request.param))
    graphs.calls = {}
    generation_arrays(HiMARCase("tiny_a.linear"), graphs)
    graphs.run("decode", tokens=torch.zeros(2, 64, 16))
    return request.param, graphs


def run_engine(plan: bytes, feeds: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Runs a plan once, into the outputs."""
    import tensorrt_rtx as trt

    engine: Any = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    for name, tensor in feeds.items():
        assert context.set_input_shape(name, tuple(tensor.shape))
    for name, tensor in {**feeds, **outputs}.items():
        assert context.set_tensor_address(name, tensor.data_ptr())
    assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", NAMES)
def test_engine(graphs: tuple[str, RecordedGraphs], name: str, tmp_path: Path) -> None:
    precision, built = graphs
    step, (given, expected) = built.steps[name], built.calls[name]
    feeds = {s.name: given[s.name].to("cuda", DTYPES[s.dtype]).contiguous() for s in step.inputs}
    outputs = {
        spec.name: torch.full(tuple(ref.shape), torch.nan, dtype=DTYPES[spec.dtype], device="cuda")
        for spec, ref in zip(step.outputs, expected, strict=True)
    }
    profile = {key: tuple(tensor.shape) for key, tensor in feeds.items()}
    report = build_engine(built.path(name), tmp_path, library=None, profiles=[profile], arches=None)
    assert report.plan, report.messages
    run_engine(report.plan, feeds, outputs)
    for spec, ref in zip(step.outputs, expected, strict=True):
        out = outputs[spec.name].float().cpu()
        assert_close(f"{name} {spec.name}", ref, out, rms_ratio=RMS_RATIO[precision])
