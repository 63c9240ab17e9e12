"""The three cases of the rewrite, and the one that it leaves alone."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from export.passes.constant_reshape import ConstantReshapePass

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[{source}] x, int64[{rank}] target) => (float[{result}] y) {{
    y = Reshape <allowzero: int = 1> (x, target)
}}
"""


@pytest.mark.parametrize(
    ("source", "result", "expected"),
    [
        ("N,l,12", "N,l,3,4", [0, 0, 3, 4]),
        ("N,h,w,8", "N,m,8", [0, -1, 8]),
        ("N,6", "2,N,3", [2, -1, 3]),
        ("4,6", "24", [24]),
        ("N,l,6", "m,n", None),
    ],
)
def test_targets(source: str, result: str, expected: list[int] | None) -> None:
    text = MODEL.format(source=source, result=result, rank=len(result.split(",")))
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    modified = ConstantReshapePass()(model).modified
    (node,) = model.graph
    assert modified == (expected is not None)
    if expected is not None:
        assert node.inputs[1].const_value.numpy().tolist() == expected
        assert "allowzero" not in node.attributes
    else:
        assert node.inputs[1].name == "target"
