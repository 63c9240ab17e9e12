"""The op: reference against plain SDPA, ONNX body against the reference, and its contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from plugins_trt.block_sparse_attn import reference
from plugins_trt.block_sparse_attn.onnx_function import function_text, node_attributes
from plugins_trt.block_sparse_attn.spec import (
    OP_DOMAIN,
    OP_NAME,
    OPSET_VERSION,
    PATTERNS,
    Attributes,
    Pattern,
    check_shapes,
)
from plugins_trt.block_sparse_attn.torch_op import attend
from tests.golden_data import assert_close

PACKS = {
    "one-token": [1],
    "one-block": [9],
    "pyramid": [1, 4, 9, 16, 25],
    "empty-blocks": [0, 3, 0, 0, 7, 0],
    "many-short": [1, 1, 2, 1, 3, 1, 1],
}


def inputs(
    lengths: list[int], heads: int = 2, head_dim: int = 5, batch: int = 3
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = torch.randn(batch, sum(lengths), 3, heads, head_dim, generator=generator)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return qkv, cu_seqlens, torch.rand(heads, generator=generator) * 4 + 0.5


@pytest.mark.parametrize("l2_norm", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("pack", PACKS)
def test_reference_is_attention_block_by_block(pack: str, pattern: Pattern, l2_norm: bool) -> None:
    qkv, cu_seqlens, scale_mul = inputs(PACKS[pack])
    out = reference.block_sparse_attention(
        qkv,
        cu_seqlens,
        scale_mul if l2_norm else None,
        sm_scale=0.3,
        pattern=pattern,
        qk_l2_norm=l2_norm,
    )
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    if l2_norm:
        q, k = F.normalize(q, dim=-1) * scale_mul.double().view(-1, 1, 1), F.normalize(k, dim=-1)
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        if start == stop:
            continue
        first = start if pattern == "block_diagonal" else 0
        block = F.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], scale=0.3
        )
        assert_close(pack, block.transpose(1, 2).flatten(2), out[:, start:stop], rms_ratio=1e-6)


@pytest.mark.parametrize("l2_norm", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_onnx_body_is_the_reference(pattern: Pattern, l2_norm: bool) -> None:
    attributes = Attributes(sm_scale=0.3, pattern=pattern, qk_l2_norm=l2_norm)
    session = ort.InferenceSession(model(attributes, 2, 5), providers=["CPUExecutionProvider"])
    for lengths in PACKS.values():
        qkv, cu_seqlens, scale_mul = inputs(lengths)
        feeds = {"qkv": qkv.numpy(), "cu_seqlens": cu_seqlens.numpy()} | (
            {"scale_mul": scale_mul.numpy()} if l2_norm else {}
        )
        expected = attend(qkv, cu_seqlens, scale_mul if l2_norm else None, attributes)
        assert_close(str(lengths), expected, session.run(None, feeds)[0])


def test_onnx_body_of_a_zero_query_is_finite() -> None:
    session = ort.InferenceSession(
        model(Attributes(sm_scale=1.0, qk_l2_norm=True), 2, 5), providers=["CPUExecutionProvider"]
    )
    qkv, cu_seqlens, scale_mul = inputs([4])
    qkv[0, 0] = 0
    feeds = {"qkv": qkv.numpy(), "cu_seqlens": cu_seqlens.numpy(), "scale_mul": scale_mul.numpy()}
    assert np.isfinite(session.run(None, feeds)[0]).all()


def model(attributes: Attributes, heads: int, head_dim: int) -> bytes:
    def value(name: str, dtype: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, dtype, shape)

    operands = [value("qkv", 1, ["B", "T", 3, heads, head_dim]), value("cu_seqlens", 6, ["S1"])]
    if attributes.qk_l2_norm:
        operands.append(value("scale_mul", 1, [heads]))
    node = onnx.helper.make_node(
        OP_NAME, [o.name for o in operands], ["o"], domain=OP_DOMAIN, **node_attributes(attributes)
    )
    graph = onnx.helper.make_graph(
        [node], "g", operands, [value("o", 1, ["B", "T", heads * head_dim])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(OP_DOMAIN, OPSET_VERSION)]
    function = onnx.parser.parse_function(function_text(attributes, 20))
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function])
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def test_torch_op_obeys_torchs_own_rules() -> None:
    qkv, cu_seqlens, scale_mul = inputs([1, 4])
    op = torch.ops.hmar.block_sparse_attention
    torch.library.opcheck(op, (qkv, cu_seqlens, scale_mul, 1.0, "block_diagonal", True))
    torch.library.opcheck(op, (qkv, cu_seqlens, None, 1.0, "block_causal", False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sm_scale": 0.0}, "sm_scale"), ({"sm_scale": 1.0, "pattern": "x"}, "pattern")],
)
def test_bad_attributes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attributes(**settings)


@pytest.mark.parametrize(
    ("qkv", "cu_seqlens", "scale_mul", "l2_norm", "message"),
    [
        ((2, 9, 3, 64), (2,), None, False, "qkv must be"),
        ((2, 9, 2, 4, 64), (2,), None, False, "qkv must be"),
        ((2, 9, 3, 4, 64), (1,), None, False, "cu_seqlens must be"),
        ((2, 9, 3, 4, 64), (2, 2), None, False, "cu_seqlens must be"),
        ((2, 9, 3, 4, 64), (2,), None, True, "scale_mul belongs to"),
        ((2, 9, 3, 4, 64), (2,), (4,), False, "scale_mul belongs to"),
        ((2, 9, 3, 4, 64), (2,), (3,), True, r"scale_mul must be \(4,\)"),
    ],
)
def test_bad_shapes(qkv: Any, cu_seqlens: Any, scale_mul: Any, l2_norm: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shapes(qkv, cu_seqlens, scale_mul, l2_norm)
