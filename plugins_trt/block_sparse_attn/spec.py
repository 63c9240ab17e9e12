"""The contract of `hmar::BlockSparseAttention`, for every implementation.

Inputs:
    qkv         (B, T, 3, H, d)  float32, float16 or bfloat16; queries, keys, values.
    cu_seqlens  (S + 1,)         int32; block s holds positions cu_seqlens[s] .. cu_seqlens[s+1] - 1
                                 of every row. Starts with 0, never decreases, ends with T; empty
                                 blocks are allowed.
    scale_mul   (H,)             float32; factor on the attention logits of each head. Present if
                                 and only if `qk_l2_norm` is 1.
Output:
    o           (B, T, H * d)    dtype of qkv; heads merged.

A row b, head h, position i attends to the positions j of its own block (`block_diagonal`) or of its
own and all earlier blocks (`block_causal`); with x^ = x / max(|x|, 1e-12) if `qk_l2_norm`, else x:

    logits_ij = sm_scale * scale_mul_h * <q^_i, k^_j>        o_i = sum_j softmax_j(logits_i) v_j

Norms, logits and softmax are taken in float32 whatever the dtype of qkv.
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


def check_shapes(
    qkv: tuple[int, ...],
    cu_seqlens: tuple[int, ...],
    scale_mul: tuple[int, ...] | None,
    qk_l2_norm: bool,
) -> None:
    """Raises ValueError unless the input shapes fit the contract."""
    if len(qkv) != 5 or qkv[2] != 3:
        raise ValueError(f"{OP_NAME}: qkv must be (B, T, 3, H, d), got {tuple(qkv)}")
    if len(cu_seqlens) != 1 or cu_seqlens[0] < 2:
        raise ValueError(
            f"{OP_NAME}: cu_seqlens must be (S + 1,) with at least one block, "
            f"got {tuple(cu_seqlens)}"
        )
    if (scale_mul is not None) != qk_l2_norm:
        raise ValueError(
            f"{OP_NAME}: scale_mul belongs to qk_l2_norm=1, got qk_l2_norm={int(qk_l2_norm)}"
        )
    if scale_mul is not None and tuple(scale_mul) != (qkv[3],):
        raise ValueError(
            f"{OP_NAME}: scale_mul must be ({qkv[3]},) for {qkv[3]} heads, got {tuple(scale_mul)}"
        )
