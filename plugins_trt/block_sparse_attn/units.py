"""What is compiled ahead of time: the units of all variants."""

from __future__ import annotations

from typing import Any, Literal

from plugins_trt.ahead_of_time.lowering import Unit, run_time_parameters
from plugins_trt.block_sparse_attn.variants import (
    NORMALIZE_BLOCK,
    NORMALIZE_WARPS,
    Dtype,
    Norm,
    Variant,
    variants,
)

TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Of the kernels' parameters: `*` is a pointer to the unit's dtype. bsa.h promises that these
# pointers, and the strides in bytes, are multiples of ALIGN_BYTES.
PARAMETERS = {
    **dict.fromkeys(("q", "k", "v", "o", "normalized_k"), "*"),
    "cu_seqlens": "*i32",
    "scale_mul": "*fp32",
    "stride_b": "i64",
    **dict.fromkeys(("stride_t", "stride_h", "length", "heads", "num_blocks"), "i32"),
    "sm_scale": "fp32",
    "is_causal": "i32",
}
ALIGNED_POINTERS = ("q", "k", "v", "o", "normalized_k")
ALIGNED_STRIDES = ("stride_b", "stride_t", "stride_h")
ALIGN_BYTES = 16

MODULE = "plugins_trt.block_sparse_attn.kernel"
FunctionName = Literal["block_sparse_attention_kernel", "normalize_keys_kernel"]


def parameters(function: FunctionName, dtype: Dtype) -> tuple[tuple[str, str], ...]:
    """Names and types of what a kernel takes at run time, in order."""
    own = f"*{TRITON_TYPES[dtype]}"
    types = {name: own if kind == "*" else kind for name, kind in PARAMETERS.items()}
    return run_time_parameters(MODULE, function, types)


def _interface(function: FunctionName, dtype: Dtype) -> dict[str, Any]:
    """What a unit says of the function, and of what the launcher passes to it."""
    divisors = dict.fromkeys(ALIGNED_POINTERS, ALIGN_BYTES) | dict.fromkeys(
        ALIGNED_STRIDES, ALIGN_BYTES // ITEM_BYTES[dtype]
    )
    taken = parameters(function, dtype)
    return {
        "module": MODULE,
        "function": function,
        "parameters": taken,
        "alignments": tuple((name, divisors[name]) for name, _ in taken if name in divisors),
    }


def attention_unit(variant: Variant) -> Unit:
    """The attention kernel of a variant."""
    tile = variant.tile
    return Unit(
        name=variant.name,
        **_interface("block_sparse_attention_kernel", variant.dtype),
        constants=(
            ("HEAD_DIM", variant.head_dim),
            ("NORM", variant.norm.value),
            ("BLOCK_M", tile.block_m),
            ("BLOCK_N", tile.block_n),
        ),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=tile.max_registers,
    )


def normalize_keys_unit(dtype: Dtype, head_dim: int) -> Unit:
    """The kernel that normalises keys beforehand."""
    return Unit(
        name=f"bsa_normalize_keys_{dtype}_d{head_dim}",
        **_interface("normalize_keys_kernel", dtype),
        constants=(("HEAD_DIM", head_dim), ("BLOCK_N", NORMALIZE_BLOCK)),
        num_warps=NORMALIZE_WARPS,
    )


def normalize_keys_sizes() -> tuple[tuple[Dtype, int], ...]:
    """Dtypes and head dimensions for which some variant has its keys normalised beforehand."""
    return tuple(
        dict.fromkeys((v.dtype, v.head_dim) for v in variants() if v.norm is Norm.BEFOREHAND)
    )


def all_units() -> tuple[Unit, ...]:
    """Everything that the fatbinary holds, for one architecture."""
    return (
        *(attention_unit(variant) for variant in variants()),
        *(normalize_keys_unit(*size) for size in normalize_keys_sizes()),
    )
