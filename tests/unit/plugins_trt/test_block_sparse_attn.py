"""The op: reference against plain SDPA, ONNX body against the reference, and its contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from plugins_trt.block_sparse_attn import reference
from plugins_trt.block_sparse_attn.spec import (
    LAYOUTS,
    PATTERNS,
    Attributes,
    Layout,
    Pattern,
    check_separate_shapes,
    check_shapes,
    layout_of,
)
from plugins_trt.block_sparse_attn.torch_op import attend
from tests.attention_cases import Inputs, make_inputs
from tests.attention_onnx import feeds, model, run_op
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("l2_norm", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_onnx_body_is_the_reference(pattern: Pattern, l2_norm: bool, layout: Layout) -> None:
    attributes = Attributes(sm_scale=0.3, pattern=pattern, qk_l2_norm=l2_norm)
    session = ort.InferenceSession(
        model(attributes, 2, 5, layout), providers=["CPUExecutionProvider"]
    )
    for lengths in PACKS.values():
        qkv, cu_seqlens, scale_mul = inputs(lengths)
        case = Inputs(
            qkv=qkv,
            cu_seqlens=cu_seqlens,
            scale_mul=scale_mul if l2_norm else None,
            attributes=attributes,
        )
        expected = attend(qkv, cu_seqlens, case.scale_mul, attributes)
        out = session.run(None, feeds(case, layout))[0]
        assert_close(str(lengths), expected, out)


def test_onnx_body_of_a_zero_query_is_finite() -> None:
    case = make_inputs((4,), torch.float32, "block_diagonal", True)
    case.qkv[0, 0] = 0
    assert torch.isfinite(run_op(case)).all()


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


@pytest.mark.parametrize(
    ("q", "k", "v", "scale_mul", "message"),
    [
        ((2, 9, 4, 64), (2, 9, 4, 64), (2, 9, 4, 32), None, r"all alike, got .* \(2, 9, 4, 32\)$"),
        ((2, 9, 4, 64), (2, 9, 2, 64), (2, 9, 4, 64), None, "all alike"),
        ((2, 9, 3, 4, 64),) * 3 + (None, r"must be \(B, T, H, d\)"),
        ((2, 9, 4, 64),) * 3 + ((3,), r"scale_mul must be \(4,\)"),
    ],
)
def test_bad_separate_shapes(q: Any, k: Any, v: Any, scale_mul: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_separate_shapes(q, k, v, (2,), scale_mul, scale_mul is not None)


def test_number_of_inputs_tells_the_layout() -> None:
    assert [layout_of(n) for n in (2, 3, 4, 5)] == ["packed", "packed", "separate", "separate"]
    with pytest.raises(ValueError, match="got 6"):
        layout_of(6)
