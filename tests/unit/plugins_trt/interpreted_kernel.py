"""Runs the kernel in Triton's interpreter; prints the relative error of every case as JSON.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch
import triton

from plugins_trt.block_sparse_attn.kernel import (
    block_sparse_attention_kernel,
    normalize_keys_kernel,
)
from plugins_trt.block_sparse_attn.spec import PATTERNS
from plugins_trt.block_sparse_attn.variants import Norm
from tests.attention_cases import PACKS, Inputs, make_inputs, relative_error


def interpret(inputs: Inputs, norm: Norm, block_m: int = 64, block_n: int = 32) -> torch.Tensor:
    B, T, _, H, d = inputs.qkv.shape
    q, k, v = inputs.qkv.unbind(2)
    out = torch.full((B, T, H * d), torch.nan, dtype=inputs.qkv.dtype)
    a, scale_mul, strides = inputs.attributes, inputs.scale_mul, q.stride()[:3]
    if norm is Norm.BEFOREHAND:
        normalized_k = k.new_full((B, H, T, d), torch.nan)
        normalize_keys_kernel[(triton.cdiv(T, block_n), H, B)](
            k, scale_mul, normalized_k, *strides, T, H, HEAD_DIM=d, BLOCK_N=block_n
        )
        k = normalized_k
    block_sparse_attention_kernel[(triton.cdiv(T, block_m), H, B)](
        q, k, v, out, inputs.cu_seqlens, inputs.cu_seqlens if scale_mul is None else scale_mul,
        *strides, T, H, len(inputs.cu_seqlens) - 1,
        a.sm_scale, int(a.pattern == "block_causal"),
        HEAD_DIM=d, NORM=norm.value, BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return out


def main() -> None:
    errors = {}
    for pack, lengths in PACKS.items():
        for pattern in PATTERNS:
            for norm in Norm:
                inputs = make_inputs(
                    lengths,
                    torch.float32,
                    pattern,
                    norm is not Norm.NONE,
                    batch=1,
                    heads=2,
                    head_dim=24,
                )
                error = relative_error(interpret(inputs, norm), inputs.expected())
                errors[f"{pack}-{pattern}-{norm.name}"] = error
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
