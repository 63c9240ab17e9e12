"""Puts traced pieces together to one ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx.parser
import onnx_ir as ir

from export.weights import WeightsFile
from plugins_trt.block_sparse_attn.onnx_function import function_text
from plugins_trt.block_sparse_attn.spec import OP_DOMAIN, OPSET_VERSION, Attributes, Pattern

IR_VERSION = 10
PRODUCER = "hmar-deploy"
Dim = int | str


def input_names(piece: ir.Graph) -> list[str]:
    """Names of the inputs of a traced piece, in order."""
    names = []
    for value in piece.inputs:
        assert value.name is not None  # tracing names every input
        names.append(value.name)
    return names


class Assembly:
    """A graph under construction: inputs, calls of pieces, single ops, outputs."""

    def __init__(self, name: str, weights: WeightsFile, opset: int) -> None:
        self.name, self.weights, self.opset = name, weights, opset
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._attention: Attributes | None = None

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def weight(self, name: str) -> ir.Value:
        """A tensor of the shared weights file."""
        if name not in self._initializers:
            self._initializers[name] = self.weights.initializer(name)
        return self._initializers[name]

    def constant(self, array: np.ndarray) -> ir.Value:
        """A small tensor stored in the graph itself; equal ones are stored once."""
        return self._constant(ir.tensor(array))

    def _constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        array = tensor.numpy()
        key = (tensor.dtype.name, array.shape, tensor.tobytes())
        if key not in self._constants:
            name, shape = f"const_{len(self._constants)}", ir.Shape(array.shape)
            stored = ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=name)
            value = ir.Value(
                name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=stored
            )
            self._constants[key] = self._initializers[name] = value
        return self._constants[key]

    def op(
        self, op_type: str, *inputs: ir.Value, name: str, results: int = 1, **attributes: int
    ) -> list[ir.Value]:
        """Outputs of one standard ONNX op."""
        node = ir.node(op_type, inputs, attributes, num_outputs=results, name=name)
        for i, output in enumerate(node.outputs):
            output.name = f"{name}_out{i}" if results > 1 else f"{name}_out"
        self._nodes.append(node)
        return list(node.outputs)

    def call(self, piece: ir.Graph, prefix: str, **bindings: ir.Value) -> list[ir.Value]:
        """Outputs of a copy of a traced piece; node and value names get the prefix.

        Args:
            bindings: a value for every input of the piece, by name.
        """
        names = input_names(piece)
        unbound = set(names) ^ set(bindings)
        if unbound:
            raise ValueError(
                f"{self.name}: inputs of piece {prefix} do not match its bindings: "
                f"{sorted(unbound)}"
            )
        values = {v: bindings[name] for v, name in zip(piece.inputs, names, strict=True)}
        for v in piece.initializers.values():
            assert v.const_value is not None  # tracing leaves no initializer without its value
            values[v] = self._constant(v.const_value)
        for node in piece:
            attributes = list(node.attributes.values())
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if v is None else values[v] for v in node.inputs],
                attributes,
                num_outputs=len(node.outputs),
                name=f"{prefix}/{node.name}",
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name = f"{prefix}/{old.name}"
                values[old] = new
            if node.domain == OP_DOMAIN:
                self._note_attention(node)
            self._nodes.append(copy)
        return [values[v] for v in piece.outputs]

    def _note_attention(self, node: ir.Node) -> None:
        attributes = Attributes(
            sm_scale=node.attributes["sm_scale"].as_float(),
            pattern=cast(Pattern, node.attributes["pattern"].as_string()),  # Attributes checks it
            qk_l2_norm=bool(node.attributes["qk_l2_norm"].as_int()),
        )
        if self._attention not in (None, attributes):
            raise ValueError(
                f"{self.name}: one graph cannot mix {self._attention} and {attributes}"
            )
        self._attention = attributes

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        """Names a value as the next output of the graph."""
        if value in self._inputs or value in self._outputs:
            (value,) = self.op("Identity", value, name=f"{name}_identity")
        value.name = name
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def build(self) -> ir.Model:
        """The finished model, with the body of the attention op as a model-local function."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": self.opset},
            name=self.name,
        )
        functions = []
        if self._attention is not None:
            graph.opset_imports[OP_DOMAIN] = OPSET_VERSION
            proto = onnx.parser.parse_function(function_text(self._attention, self.opset))
            functions.append(ir.serde.deserialize_function(proto))
        return ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER, functions=functions)
