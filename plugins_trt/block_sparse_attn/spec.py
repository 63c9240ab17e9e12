"""The contract of `hmar::BlockSparseAttention`, for every implementation.

Inputs, in one of two layouts:
    packed      qkv, cu_seqlens[, scale_mul]
    separate    q, k, v, cu_seqlens[, scale_mul]

    qkv         (B, T, 3, H, d)  float32, float16 or bfloat16; queries, keys, values.
    q, k, v     (B, T, H, d)     the same, each on its own; all of one shape and dtype.
    cu_seqlens  (S + 1,)         int32; block s holds positions cu_seqlens[s] .. cu_seqlens[s+1] - 1
                                 of every row. Starts with 0, never decreases, ends with T; empty
                                 blocks are allowed.
    scale_mul   (H,)             float32; factor on the attention logits of each head. Present if
                                 and only if `qk_l2_norm` is 1.
    The number of inputs tells the layouts apart: 2 or 3 are packed, 4 or 5 separate.
Output:
    o           (B, T, H * d)    dtype of the queries; heads merged.

A row b, head h, position i attends to the positions j of its own block (`block_diagonal`) or of its
own and all earlier blocks (`block_causal`); with x^ = x / max(|x|, 1e-12) if `qk_l2_norm`, else x:

    logits_ij = sm_scale * scale_mul_h * <q^_i, k^_j>        o_i = sum_j softmax_j(logits_i) v_j

Norms, logits and softmax are taken in float32 whatever the dtype of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

OP_DOMAIN = "hmar"
OP_NAME = "BlockSparseAttention"
OPSET_VERSION = 1

# What a TensorRT plugin creator registers under; the ONNX node carries both as attributes.
PLUGIN_NAMESPACE = "hmar"
PLUGIN_VERSION = "1"

Pattern = Literal["block_diagonal", "block_causal"]
PATTERNS: tuple[str, ...] = get_args(Pattern)
Layout = Literal["packed", "separate"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Shape = tuple[int, ...]

NORM_FLOOR = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Attributes of one node.

    Attributes:
        sm_scale: softmax scale.
        pattern: which blocks a block attends to.
        qk_l2_norm: unit-length queries and keys.
    """

    sm_scale: float
    pattern: Pattern = "block_diagonal"
    qk_l2_norm: bool = False

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"{OP_NAME}: pattern must be one of {PATTERNS}, got {self.pattern!r}")
        if not self.sm_scale > 0:
            raise ValueError(f"{OP_NAME}: sm_scale must be positive, got {self.sm_scale}")


def layout_of(num_inputs: int) -> Layout:
    """The layout of a node with this many inputs.

    Raises:
        ValueError: no layout has this many.
    """
    if num_inputs not in (2, 3, 4, 5):
        raise ValueError(
            f"{OP_NAME}: takes 2 or 3 inputs (qkv, cu_seqlens[, scale_mul]) or "
            f"4 or 5 (q, k, v, cu_seqlens[, scale_mul]), got {num_inputs}"
        )
    return "packed" if num_inputs <= 3 else "separate"


def check_shapes(qkv: Shape, cu_seqlens: Shape, scale_mul: Shape | None, qk_l2_norm: bool) -> None:
    """Raises ValueError unless the input shapes of the packed layout fit the contract."""
    if len(qkv) != 5 or qkv[2] != 3:
        raise ValueError(f"{OP_NAME}: qkv must be (B, T, 3, H, d), got {tuple(qkv)}")
    _check_shapes_beside(qkv[3], cu_seqlens, scale_mul, qk_l2_norm)


def check_separate_shapes(
    q: Shape, k: Shape, v: Shape, cu_seqlens: Shape, scale_mul: Shape | None, qk_l2_norm: bool
) -> None:
    """Raises ValueError unless the input shapes of the separate layout fit the contract."""
    if len(q) != 4 or tuple(k) != tuple(q) or tuple(v) != tuple(q):
        raise ValueError(
            f"{OP_NAME}: q, k and v must be (B, T, H, d), all alike, "
            f"got {tuple(q)}, {tuple(k)} and {tuple(v)}"
        )
    _check_shapes_beside(q[2], cu_seqlens, scale_mul, qk_l2_norm)


def _check_shapes_beside(
    heads: int, cu_seqlens: Shape, scale_mul: Shape | None, qk_l2_norm: bool
) -> None:
    if len(cu_seqlens) != 1 or cu_seqlens[0] < 2:
        raise ValueError(
            f"{OP_NAME}: cu_seqlens must be (S + 1,) with at least one block, "
            f"got {tuple(cu_seqlens)}"
        )
    if (scale_mul is not None) != qk_l2_norm:
        raise ValueError(
            f"{OP_NAME}: scale_mul belongs to qk_l2_norm=1, got qk_l2_norm={int(qk_l2_norm)}"
        )
    if scale_mul is not None and tuple(scale_mul) != (heads,):
        raise ValueError(
            f"{OP_NAME}: scale_mul must be ({heads},) for {heads} heads, got {tuple(scale_mul)}"
        )
