"""Graph rewrites, in the order in which they run on every traced graph."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.constant_reshape import ConstantReshapePass

PIPELINE: tuple[ir.passes.InPlacePass, ...] = (ConstantReshapePass(),)
