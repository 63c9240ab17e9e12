"""Cuts an ONNX graph into stages, at tensors through which everything passes where there are any.

Only the graph's structure enters; no names of tensors or layers are known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from runtime.bundle import DtypeName, TensorSpec
from runtime.engine_plan import nbytes
from runtime.stages import Stage

DTYPES: dict[int, DtypeName] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}
ELEMENT_TYPES = {name: number for number, name in DTYPES.items()}
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that take most of the time; stages are balanced by their number."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a graph's nodes, as a stage of its own."""

    start: int
    stop: int
    stage: Stage


class GraphCutter:
    """A graph, and what is needed to know about its tensors to cut it.

    Nodes that depend on constants alone belong to no part; every part takes along those it needs.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model, graph = model, model.graph
        weights = {tensor.name for tensor in graph.initializer}
        self._inputs = [value.name for value in graph.input if value.name not in weights]
        self._outputs = {value.name for value in graph.output}
        self._made_at = dict.fromkeys(self._inputs, -1)
        self._last_use: dict[str, int] = {}
        self._nodes: list[NodeProto] = []
        self._constants: list[NodeProto] = []
        for node in graph.node:
            data = [name for name in node.input if name in self._made_at]
            if not data:
                self._constants.append(node)
                continue
            self._last_use.update(dict.fromkeys(data, len(self._nodes)))
            # an output that is left out has no name
            self._made_at.update(dict.fromkeys(filter(None, node.output), len(self._nodes)))
            self._nodes.append(node)
        self._specs = _infer_specs(model)
        products = [node.op_type in PRODUCTS for node in self._nodes]
        self._products = list(accumulate(products, initial=0))

    @classmethod
    def open(cls, path: Path) -> GraphCutter:
        """Reads a graph without its weights."""
        return cls(onnx.load(path, load_external_data=False))

    def whole(self) -> Part:
        """All of the graph."""
        return self._part(0, len(self._nodes))

    def cut(self, part: Part, count: int) -> list[Part]:
        """Up to `count` parts of a part, of nearly equal numbers of products.

        It is cut where one tensor holds all that later nodes need, so not within a residual block;
        if there is no such place, where several do. A part that cannot be cut comes back alone.
        """
        done, total = self._products[part.start], self._products[part.stop]
        places = [p for p in range(part.start + 1, part.stop) if self._can_cut(p)]
        within = [p for p in places if done < self._products[p] < total]
        narrow = [p for p in within if len(self._passing(p)) == 1]
        candidates = narrow or within or places
        if not candidates:
            return [part]

        def nearest(target: float) -> int:
            # of equal ones, where the least is to be kept
            return min(
                candidates, key=lambda p: (abs(self._products[p] - target), self._passing_nbytes(p))
            )

        targets = [done + (total - done) * k / count for k in range(1, count)]
        bounds = [part.start, *sorted({nearest(target) for target in targets}), part.stop]
        return [self._part(a, b) for a, b in pairwise(bounds)]

    def extract(self, part: Part) -> ModelProto:
        """The ONNX model of a part; its weights stay where they are."""
        nodes = self._nodes[part.start : part.stop]
        needed = {name for node in nodes for name in node.input}
        constants: list[NodeProto] = []
        for node in reversed(self._constants):
            if needed.intersection(node.output):
                needed.update(node.input)
                constants.insert(0, node)
        graph = helper.make_graph(
            [*constants, *nodes],
            self._model.graph.name,
            [_value_info(spec) for spec in part.stage.inputs],
            [_value_info(spec) for spec in part.stage.outputs],
            [tensor for tensor in self._model.graph.initializer if tensor.name in needed],
        )
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
            producer_name=self._model.producer_name,
        )

    def _part(self, start: int, stop: int) -> Part:
        """The part between two places; its inputs and outputs in the order of the graph."""
        read = {name for node in self._nodes[start:stop] for name in node.input}
        names = [name for name, made in self._made_at.items() if made < start and name in read]
        results = [
            name
            for name, made in self._made_at.items()
            if start <= made < stop
            and (self._last_use.get(name, -1) >= stop or name in self._outputs)
        ]
        stage = Stage(
            inputs=tuple(self._specs[name] for name in names),
            outputs=tuple(self._specs[name] for name in results),
        )
        return Part(start, stop, stage)

    def _passing(self, place: int) -> list[str]:
        """Tensors made before a place that nodes after it read."""
        return [
            name for name, last in self._last_use.items() if self._made_at[name] < place <= last
        ]

    def _passing_nbytes(self, place: int) -> int:
        specs = [self._specs[name] for name in self._passing(place)]
        symbols = {d: 1 for spec in specs for d in spec.shape if isinstance(d, str)}
        return sum(nbytes(spec, symbols) for spec in specs)

    def _can_cut(self, place: int) -> bool:
        return all(name in self._specs for name in self._passing(place))


def _infer_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Dtype and shape of every tensor whose sizes are numbers or symbols of the inputs.

    Inference loses symbols at reshapes. So it is done with numbers for them, twice: what differs is
    the symbol that had these two numbers.
    """
    shapes = [value.type.tensor_type.shape for value in model.graph.input]
    symbols = sorted({d.dim_param for shape in shapes for d in shape.dim if d.dim_param})
    numbers = {(2 + 2 * i, 3 + 2 * i): symbol for i, symbol in enumerate(symbols)}
    first, second = (
        _infer_shapes(model, {symbol: pair[k] for pair, symbol in numbers.items()}) for k in (0, 1)
    )
    specs = {}
    for name, (dtype, shape) in first.items():
        pairs = zip(shape, second[name][1], strict=True)
        dims = [a if a == b else numbers.get((a, b)) for a, b in pairs]
        if dtype in DTYPES and all(dims):
            specs[name] = TensorSpec(name, DTYPES[dtype], tuple(d for d in dims if d))
    return specs


def _infer_shapes(
    model: ModelProto, sizes: Mapping[str, int]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Element type and shape of every tensor; a size that is not known is 0."""
    bound = ModelProto()
    bound.CopyFrom(model)
    del bound.graph.value_info[:]
    for value in (*bound.graph.input, *bound.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    graph = shape_inference.infer_shapes(bound, data_prop=True).graph
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], spec.shape)
