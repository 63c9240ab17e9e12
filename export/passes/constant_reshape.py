"""Reshape nodes take their target shape from a constant instead of computing it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes


class ConstantReshapePass(ir.passes.InPlacePass):
    """Replaces computed Reshape targets by constants, and removes what computed them.

    torch.onnx builds the target of a reshape with symbolic sizes from Shape, Gather and Concat
    nodes. Each target dimension is, in this order:
        1. its value, where it is static;
        2. 0 ("copy"), where the input has the same symbol at the same place;
        3. -1 ("infer"), for at most one remaining dimension.
    A Reshape with more unknown dimensions is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Reshape":
                continue
            data, shape = node.inputs
            assert data is not None and shape is not None  # Reshape has no optional inputs
            if shape.is_initializer():
                continue
            target = _target(data.shape, node.outputs[0].shape)
            if target is None:
                continue
            name = f"{node.name}_shape"
            constant = ir.Value(
                name=name, const_value=ir.tensor(np.array(target, np.int64), name=name)
            )
            model.graph.register_initializer(constant)
            node.replace_input_with(1, constant)
            node.attributes.pop("allowzero", None)
            modified = True
        if modified:
            common_passes.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _target(source: ir.Shape | None, result: ir.Shape | None) -> list[int] | None:
    if source is None or result is None:
        return None
    target = []
    for i, dim in enumerate(result):
        if isinstance(dim, int):
            target.append(dim)
        elif i < len(source) and dim == source[i]:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None
