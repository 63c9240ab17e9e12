"""The op in ONNX: its node's attributes, and a body of standard ops for use without the plugin.

A model that uses the op carries the body as a model-local function. ONNX Runtime inlines it;
TensorRT's parser prefers a registered plugin of the same name and otherwise takes the body.
"""

from __future__ import annotations

from plugins_trt.block_sparse_attn.spec import (
    NORM_FLOOR,
    OP_DOMAIN,
    OP_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    Attributes,
    Layout,
)


def node_attributes(attributes: Attributes) -> dict[str, float | int | str]:
    """Attributes of the ONNX node."""
    return {
        "sm_scale": attributes.sm_scale,
        "pattern": attributes.pattern,
        "qk_l2_norm": int(attributes.qk_l2_norm),
        "plugin_version": PLUGIN_VERSION,
        "plugin_namespace": PLUGIN_NAMESPACE,
    }


def function_text(attributes: Attributes, opset: int, layout: Layout = "packed") -> str:
    """The function body in ONNX's text syntax.

    A body cannot branch on attributes or on its number of inputs, so it is written for one
    `pattern`, `qk_l2_norm` and layout; a model holds the one that all of its nodes share.
    `sm_scale` stays an attribute.
    """
    inputs = "qkv, cu_seqlens" if layout == "packed" else "q_BTHd, k_BTHd, v_BTHd, cu_seqlens"
    if attributes.qk_l2_norm:
        inputs += ", scale_mul"
    tokens = "qkv" if layout == "packed" else "q_BTHd"  # its dtype, and its T in dimension 1
    return f"""
<domain: "{OP_DOMAIN}", opset_import: ["" : {opset}]>
{OP_NAME} <sm_scale, pattern, qk_l2_norm, plugin_version, plugin_namespace> ({inputs}) => (o)
{{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    {_heads_first(layout)}
    last = Constant <value_ints: ints = [-1]> ()
    {_normalised("q", tokens, attributes.qk_l2_norm)}
    {_normalised("k", tokens, attributes.qk_l2_norm)}
    k_t = Transpose <perm: ints = [0, 1, 3, 2]> (k)
    qk = MatMul (q, k_t)
    qk_float = Cast <to: int = 1> (qk)
    sm_scale = Constant <value_float: float = @sm_scale> ()
    {_scaled(attributes.qk_l2_norm)}
    {_masked(attributes.pattern, tokens)}
    p_float = Softmax <axis: int = -1> (masked)
    p = CastLike (p_float, v)
    o_heads = MatMul (p, v)
    o_tokens = Transpose <perm: ints = [0, 2, 1, 3]> (o_heads)
    merged = Constant <value_ints: ints = [0, 0, -1]> ()
    o = Reshape (o_tokens, merged)
}}
"""


def _heads_first(layout: Layout) -> str:
    if layout == "separate":
        return """q_raw = Transpose <perm: ints = [0, 2, 1, 3]> (q_BTHd)
    k_raw = Transpose <perm: ints = [0, 2, 1, 3]> (k_BTHd)
    v = Transpose <perm: ints = [0, 2, 1, 3]> (v_BTHd)"""
    return """heads_first = Transpose <perm: ints = [2, 0, 3, 1, 4]> (qkv)
    two = Constant <value_int: int = 2> ()
    q_raw = Gather <axis: int = 0> (heads_first, zero)
    k_raw = Gather <axis: int = 0> (heads_first, one)
    v = Gather <axis: int = 0> (heads_first, two)"""


def _normalised(x: str, tokens: str, qk_l2_norm: bool) -> str:
    if not qk_l2_norm:
        return f"{x} = Identity ({x}_raw)"
    return f"""{x}_float = Cast <to: int = 1> ({x}_raw)
    {x}_norm = ReduceL2 <keepdims: int = 1> ({x}_float, last)
    {x}_floor = Constant <value_float: float = {NORM_FLOOR}> ()
    {x}_safe = Max ({x}_norm, {x}_floor)
    {x}_unit = Div ({x}_float, {x}_safe)
    {x} = CastLike ({x}_unit, {tokens})"""


def _scaled(qk_l2_norm: bool) -> str:
    if not qk_l2_norm:
        return "logits = Mul (qk_float, sm_scale)"
    return """per_head = Constant <value_ints: ints = [1, 2]> ()
    scale_mul_H11 = Unsqueeze (scale_mul, per_head)
    scale_H11 = Mul (scale_mul_H11, sm_scale)
    logits = Mul (qk_float, scale_H11)"""


def _masked(pattern: str, tokens: str) -> str:
    attends = "Equal" if pattern == "block_diagonal" else "GreaterOrEqual"
    return f"""length = Shape <start: int = 1, end: int = 2> ({tokens})
    scalar = Constant <value_ints: ints = []> ()
    length_scalar = Reshape (length, scalar)
    positions_long = Range (zero, length_scalar, one)
    positions = Cast <to: int = 6> (positions_long)
    axis0 = Constant <value_ints: ints = [0]> ()
    axis1 = Constant <value_ints: ints = [1]> ()
    start = Constant <value_ints: ints = [1]> ()
    stop = Constant <value_ints: ints = [2147483647]> ()
    ends = Slice (cu_seqlens, start, stop, axis0)
    positions_T1 = Unsqueeze (positions, axis1)
    ends_1S = Unsqueeze (ends, axis0)
    passed = GreaterOrEqual (positions_T1, ends_1S)
    passed_int = Cast <to: int = 6> (passed)
    block_T1 = ReduceSum <keepdims: int = 1> (passed_int, axis1)
    block_1T = Transpose <perm: ints = [1, 0]> (block_T1)
    attends = {attends} (block_T1, block_1T)
    minus_inf = Constant <value_float: float = -inf> ()
    masked = Where (attends, logits, minus_inf)"""
