"""Graph rewrites, in the order in which they run on every traced graph."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from export.passes.constant_reshape import ConstantReshapePass

PIPELINE: tuple[ir.passes.PassBase, ...] = (
    common_passes.ShapeInferencePass(),
    ConstantReshapePass(),
)
