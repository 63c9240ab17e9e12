"""The TensorRT plugin inside an engine on a GPU, run directly and from a CUDA graph.

The engine is made through `harness/gqa_harness.cpp`, see there.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from plugins_trt.block_sparse_attn.spec import PATTERNS, Attributes, Pattern
from tests.attention_cases import PACKS, Inputs, make_inputs
from tests.gpu.test_block_sparse_attn import DTYPES, check
from tests.plugin_build import PluginBuild
from tests.tensorrt_build import Profile, build_engine

pytestmark = [pytest.mark.gpu, pytest.mark.trt]

HEADS, HEAD_DIM = 4, 64
# one optimization profile each
CASES = ("one-token", "pyramid", "on-the-tile")
INPUTS = ("query", "key", "value", "past_key", "past_value", "cu_seqlens", "cos_cache")


def gqa_model(attributes: Attributes, dtype: torch.dtype, packed: bool) -> onnx.ModelProto:
    """A graph of the one node that the harness takes."""
    element = {
        torch.float32: onnx.TensorProto.FLOAT,
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.bfloat16: onnx.TensorProto.BFLOAT16,
    }[dtype]
    width = HEADS * HEAD_DIM

    def value(name: str, shape: list[Any], element: int = element) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, element, shape)

    tokens = ["B", "T", 3 * width if packed else width]
    past = ["B", HEADS, 1, HEAD_DIM]
    inputs = [
        *(value(name, tokens) for name in INPUTS[:3]),
        *(value(name, past) for name in INPUTS[3:5]),
        value("cu_seqlens", ["S1"], onnx.TensorProto.INT32),
        value("cos_cache", [1, HEADS], onnx.TensorProto.FLOAT),  # scale_mul
    ]
    total = onnx.numpy_helper.from_array(np.array(1, np.int32), "total_sequence_length")
    sin = onnx.numpy_helper.from_array(np.zeros((1, HEADS), np.float32), "sin_cache")
    node = onnx.helper.make_node(
        "GroupQueryAttention",
        [*INPUTS[:6], "total_sequence_length", "cos_cache", "sin_cache"],
        ["o", "present_key", "present_value"],
        domain="com.microsoft",
        do_rotary=1,
        scale=attributes.sm_scale,
        num_heads=HEADS,
        kv_num_heads=1 if packed else HEADS,
        local_window_size=-1 if attributes.pattern == "block_diagonal" else 1,
        rotary_interleaved=int(attributes.qk_l2_norm),
    )
    outputs = [
        value("o", ["B", "T", width]),
        value("present_key", past),
        value("present_value", past),
    ]
    graph = onnx.helper.make_graph([node], "gqa", inputs, outputs, [sin, total])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(inputs: Inputs, packed: bool) -> dict[str, torch.Tensor]:
    """Tensors of the engine's inputs."""
    B, T = inputs.qkv.shape[:2]
    scale_mul = inputs.scale_mul
    if scale_mul is None:
        scale_mul = torch.full((HEADS,), torch.nan, device=inputs.qkv.device)  # not read
    parts = [inputs.qkv] * 3 if packed else inputs.qkv.unbind(2)
    past = torch.full((B, HEADS, 1, HEAD_DIM), torch.nan).to(inputs.qkv)
    tensors = [
        *(part.reshape(B, T, -1).contiguous() for part in parts),
        past,
        past,
        inputs.cu_seqlens,
        scale_mul.view(1, HEADS),
    ]
    return dict(zip(INPUTS, tensors, strict=True))


class EngineRun:
    """An execution context with one call bound to it."""

    def __init__(self, engine: Any, profile: int, inputs: Inputs, packed: bool) -> None:
        B, T = inputs.qkv.shape[:2]
        like = {"dtype": inputs.qkv.dtype, "device": inputs.qkv.device}
        self.inputs, self.feeds = inputs, feeds(inputs, packed)
        self.out = torch.full((B, T, HEADS * HEAD_DIM), torch.nan, **like)
        present = {
            name: torch.empty((B, HEADS, 1, HEAD_DIM), **like)
            for name in ("present_key", "present_value")
        }
        self.context = engine.create_execution_context()
        stream = torch.cuda.current_stream().cuda_stream
        assert self.context.set_optimization_profile_async(profile, stream)
        for name, tensor in self.feeds.items():
            # the parser keeps only inputs that the node uses
            assert self.context.set_input_shape(name, tuple(tensor.shape))
        self.bound = {**self.feeds, **present, "o": self.out}
        for name, tensor in self.bound.items():
            assert self.context.set_tensor_address(name, tensor.data_ptr())

    def __call__(self) -> None:
        assert self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream)


@pytest.fixture(scope="module")
def trt(plugin_build: PluginBuild) -> ModuleType:
    """TensorRT-RTX with the harness registered."""
    import tensorrt_rtx

    tensorrt_rtx.get_plugin_registry().load_library(str(plugin_build.gqa_harness))
    return tensorrt_rtx


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_engine_gives_the_reference_directly_and_replayed(
    trt: ModuleType,
    plugin_build: PluginBuild,
    pattern: Pattern,
    norm: bool,
    dtype: str,
    packed: bool,
    tmp_path: Path,
) -> None:
    def make(pack: str, seed: int) -> Inputs:
        return make_inputs(
            PACKS[pack],
            DTYPES[dtype],
            pattern,
            norm,
            heads=HEADS,
            head_dim=HEAD_DIM,
            seed=seed,
            device="cuda",
        )

    cases = [make(pack, seed) for seed, pack in enumerate(CASES)]
    profiles: list[Profile] = [
        {name: tensor.shape for name, tensor in feeds(inputs, packed).items()} for inputs in cases
    ]
    graph = tmp_path / "gqa.onnx"
    onnx.save(gqa_model(cases[0].attributes, DTYPES[dtype], packed), graph)
    report = build_engine(
        graph, tmp_path, library=plugin_build.gqa_harness, profiles=profiles, arches=None
    )
    assert report.plan, report.messages

    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(report.plan)
    for profile, (pack, inputs) in enumerate(zip(CASES, cases, strict=True)):
        run = EngineRun(engine, profile, inputs, packed)
        run()
        check(inputs, run.out)

        other = make(pack, 100 + profile)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        for name, tensor in feeds(other, packed).items():
            run.feeds[name].copy_(tensor)
        run.out.fill_(torch.nan)
        captured.replay()
        check(other, run.out)
