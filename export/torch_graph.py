"""A graph in PyTorch, one op after the other, in the dtypes that it names.

Stands in where ONNX Runtime's CPU provider has no kernel for bfloat16. It knows the ops of
Hi-MAR's graphs and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from export.errors import GraphError
from export.ladder import NUMPY_DTYPES, Arrays
from runtime.bundle import GraphSpec

TORCH_ENGINE = f"torch {torch.__version__}, op by op"
DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
}
Attributes = Mapping[str, Any]


class TorchGraph:
    """A graph of a bundle, ready to be run."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        """Reads a graph and its weights.

        Raises:
            GraphError: it holds an op that is not known here.
        """
        self.spec, self.graph = spec, ir.load(path).graph
        if unknown := {node.op_type for node in self.graph} - set(OPS):
            raise GraphError(
                f"{path.name}: cannot be compared in bfloat16: ONNX Runtime's CPU provider does "
                f"not run it, and {sorted(unknown)} have no PyTorch form here; export with "
                "--no-verify, or in another precision"
            )
        self.constants: dict[ir.Value, Tensor] = {}
        for value in self.graph.initializers.values():
            assert value.const_value is not None  # every initializer has its values
            self.constants[value] = to_torch(value.const_value.numpy())

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name, bfloat16 as float32, from inputs in any dtype of the same kind."""
        values = dict(self.constants)
        for spec, value in zip(self.spec.inputs, self.graph.inputs, strict=True):
            values[value] = to_torch(feeds[spec.name].astype(NUMPY_DTYPES[spec.dtype]))
        for node in self.graph:
            operands = [None if v is None else values[v] for v in node.inputs]
            attributes = {name: a.value for name, a in node.attributes.items()}
            results = OPS[node.op_type](attributes, *operands)
            outputs = results if isinstance(results, tuple) else (results,)
            values.update(zip(node.outputs, outputs, strict=True))
        return {
            spec.name: values[value].float().numpy()
            for spec, value in zip(self.spec.outputs, self.graph.outputs, strict=True)
        }


def to_torch(array: np.ndarray) -> Tensor:
    """A tensor of the same values; NumPy's bfloat16 is unknown to PyTorch."""
    if array.dtype == NUMPY_DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    top, left, bottom, right = a["pads"]
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride=a["strides"])


def _gather_nd(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    """Rows of every sequence, the only form in use."""
    assert a["batch_dims"] == 1 and indices.shape[-1] == 1
    return x.gather(1, indices.expand(-1, -1, x.shape[-1]))


def _group_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, a["num_groups"], weight, bias, a["epsilon"])


def _instance_norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=a["epsilon"])


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    dims = shape.tolist()
    if not a.get("allowzero"):
        dims = [x.shape[i] if dim == 0 else dim for i, dim in enumerate(dims)]
    return x.reshape(dims)


def _resize(a: Attributes, x: Tensor, roi: None, scales: Tensor) -> Tensor:
    assert a["mode"] == "nearest"
    return F.interpolate(x, scale_factor=scales[2:].tolist(), mode="nearest")


def _slice(a: Attributes, x: Tensor, start: Tensor, stop: Tensor, axis: Tensor) -> Tensor:
    return x.narrow(int(axis), int(start), int(stop) - int(start))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    for axis in axes.tolist():
        x = x.unsqueeze(axis)
    return x


OPS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": lambda a, x: x.to(DTYPES[ir.DataType(a["to"])]),
    "CastLike": lambda a, x, y: x.to(y.dtype),
    "Clip": lambda a, x, low, high: x.clamp(low, high),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Exp": lambda a, x: x.exp(),
    "Gather": lambda a, x, index: x[index.long()],
    "GatherND": _gather_nd,
    "Gelu": lambda a, x: F.gelu(x, approximate=a["approximate"]),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": lambda a, x, w, b: F.instance_norm(
        x, None, None, w, b, eps=a["epsilon"]
    ),
    "LayerNormalization": lambda a, x, w, b=None: F.layer_norm(x, x.shape[-1:], w, b, a["epsilon"]),
    "Less": lambda a, x, y: x < y,
    "MatMul": lambda a, x, y: x @ y,
    "Mul": lambda a, x, y: x * y,
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a["axis"]),
    "Split": lambda a, x: x.chunk(a["num_outputs"], a["axis"]),
    "Squeeze": lambda a, x, axes: x.squeeze(axes.tolist()),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(*a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, c, x, y: torch.where(c, x, y),
}
