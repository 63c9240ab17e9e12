"""What builds graphs one after the other; subclasses have a method per kind of graph."""

from __future__ import annotations

import onnx_ir as ir

from export.assemble import Assembly
from export.step import Step
from export.weights import WeightsFile

IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int32": ir.DataType.INT32,
    "bool": ir.DataType.BOOL,
}
Values = dict[str, ir.Value]


class Builder:
    """Calls `_<kind>(assembly, step, inputs)`, which gives the step's outputs in order."""

    def __init__(self, weights: WeightsFile, opset: int) -> None:
        self.weights, self.opset = weights, opset

    def build(self, step: Step) -> ir.Model:
        """The ONNX model of a step, its weights pointing into the shared file."""
        asm = Assembly(step.name, self.weights, self.opset)
        inputs = {
            spec.name: asm.input(spec.name, IR_DTYPES[spec.dtype], spec.shape)
            for spec in step.inputs
        }
        results = getattr(self, f"_{step.kind}")(asm, step, inputs)
        for spec, value in zip(step.outputs, results, strict=True):
            asm.output(spec.name, value, IR_DTYPES[spec.dtype], spec.shape)
        return asm.build()
