"""Packs of blocks, their inputs, and a one-node ONNX model of the op."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
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

PACKS = {
    "one-token": [1],
    "one-block": [9],
    "pyramid": [1, 4, 9, 16, 25],
    "empty-blocks": [0, 3, 0, 0, 7, 0],
    "many-short": [1, 1, 2, 1, 3, 1, 1],
}


def inputs(
    lengths: list[int], heads: int = 2, head_dim: int = 5, batch: int = 3
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = torch.randn(batch, sum(lengths), 3, heads, head_dim, generator=generator)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return qkv, cu_seqlens, torch.rand(heads, generator=generator) * 4 + 0.5


def feeds(
    qkv: Tensor, cu_seqlens: Tensor, scale_mul: Tensor | None, layout: Layout = "packed"
) -> dict[str, np.ndarray]:
    """Inputs of `model`, by name."""
    tensors = {"qkv": qkv} if layout == "packed" else dict(zip("qkv", qkv.unbind(2), strict=True))
    tensors["cu_seqlens"] = cu_seqlens
    if scale_mul is not None:
        tensors["scale_mul"] = scale_mul
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def model(
    attributes: Attributes,
    heads: int,
    head_dim: int,
    layout: Layout = "packed",
    dtype: int = onnx.TensorProto.FLOAT,
    with_function: bool = True,
    **changes: Any,
) -> bytes:
    """One node of the op, with `changes` to its attributes."""

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
        **node_attributes(attributes) | changes,
    )
    graph = onnx.helper.make_graph(
        [node], "g", operands, [value("o", dtype, ["B", "T", heads * head_dim])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(OP_DOMAIN, OPSET_VERSION)]
    functions = (
        [onnx.parser.parse_function(function_text(attributes, 20, layout))] if with_function else []
    )
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    if with_function:
        onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()
