"""The attention op as a one-node ONNX model, and its runs by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import torch
from torch import Tensor

from plugins_trt.block_sparse_attn.onnx_function import function_text, node_attributes
from plugins_trt.block_sparse_attn.spec import (
    OP_DOMAIN,
    OP_NAME,
    OPSET_VERSION,
    Attributes,
    Layout,
)
from plugins_trt.loader import register_ort
from tests.attention_cases import Inputs

ONNX_DTYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}


def model(
    attributes: Attributes,
    heads: int,
    head_dim: int,
    layout: Layout = "packed",
    dtype: int = onnx.TensorProto.FLOAT,
) -> bytes:
    """One node of the op, and the function."""

    def value(name: str, dtype: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, dtype, shape)

    if layout == "packed":
        operands = [value("qkv", dtype, ["B", "T", 3, heads, head_dim])]
    else:
        operands = [value(name, dtype, ["B", "T", heads, head_dim]) for name in "qkv"]
    operands.append(value("cu_seqlens", onnx.TensorProto.INT32, ["S1"]))
    if attributes.qk_l2_norm:
        operands.append(value("scale_mul", onnx.TensorProto.FLOAT, [heads]))
    node = onnx.helper.make_node(
        OP_NAME,
        [o.name for o in operands],
        ["o"],
        domain=OP_DOMAIN,
        **node_attributes(attributes),
    )
    graph = onnx.helper.make_graph(
        [node], "g", operands, [value("o", dtype, ["B", "T", heads * head_dim])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(OP_DOMAIN, OPSET_VERSION)]
    function = onnx.parser.parse_function(function_text(attributes, 20, layout))
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function])
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def array(tensor: Tensor) -> np.ndarray:
    """A contiguous array of the tensor's own dtype."""
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def feeds(inputs: Inputs, layout: Layout = "packed") -> dict[str, np.ndarray]:
    """Inputs of `model`, by name."""
    qkv = inputs.qkv
    tensors = {"qkv": qkv} if layout == "packed" else dict(zip("qkv", qkv.unbind(2), strict=True))
    tensors["cu_seqlens"] = inputs.cu_seqlens
    if inputs.scale_mul is not None:
        tensors["scale_mul"] = inputs.scale_mul
    return {name: array(tensor) for name, tensor in tensors.items()}


def make_session(
    graph: bytes,
    library: Path | None = None,
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """A session, with the custom ops of a library if there is one."""
    options = options or ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        register_ort(options, library)
    return ort.InferenceSession(graph, options, providers=list(providers))


def run_op(
    inputs: Inputs,
    library: Path | None = None,
    layout: Layout = "packed",
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> Tensor:
    """The op's output, written to memory that was filled with NaN before."""
    B, T, _, H, d = inputs.qkv.shape
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    graph = model(inputs.attributes, H, d, layout, ONNX_DTYPES[inputs.qkv.dtype])
    session = make_session(graph, library, options, providers)
    out = torch.full((B, T, H * d), torch.nan, dtype=inputs.qkv.dtype)
    binding = session.io_binding()
    arrays = feeds(inputs, layout)  # values on the CPU point into them and do not keep them alive
    for name, value in arrays.items():
        binding.bind_ortvalue_input(name, _ortvalue(value))
    binding.bind_ortvalue_output("o", _ortvalue(array(out)))
    session.run_with_iobinding(binding)
    return out


def _ortvalue(value: np.ndarray) -> ort.OrtValue:
    if value.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            value.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(value)
