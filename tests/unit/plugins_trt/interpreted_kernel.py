"""Runs the kernel in Triton's interpreter; prints the relative error of every case as JSON.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch
import triton

from plugins_trt.block_sparse_attn.kernel import block_sparse_attention_kernel
from plugins_trt.block_sparse_attn.spec import PATTERNS
from tests.attention_cases import PACKS, Inputs, make_inputs, relative_error


def interpret(inputs: Inputs, block_m: int = 64, block_n: int = 32) -> torch.Tensor:
    B, T, _, H, d = inputs.qkv.shape
    q, k, v = inputs.qkv.unbind(2)
    out = torch.full((B, T, H * d), torch.nan, dtype=inputs.qkv.dtype)
    a, scale_mul = inputs.attributes, inputs.scale_mul
    block_sparse_attention_kernel[(triton.cdiv(T, block_m), H, B)](
        q, k, v, out, inputs.cu_seqlens, inputs.cu_seqlens if scale_mul is None else scale_mul,
        *q.stride()[:3], T, H, len(inputs.cu_seqlens) - 1,
        a.sm_scale, int(a.pattern == "block_causal"),
        HEAD_DIM=d, QK_L2_NORM=a.qk_l2_norm, BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return out


def main() -> None:
    errors = {}
    for pack, lengths in PACKS.items():
        for pattern in PATTERNS:
            for qk_l2_norm in (False, True):
                inputs = make_inputs(
                    lengths, torch.float32, pattern, qk_l2_norm, batch=1, heads=2, head_dim=24
                )
                name = f"{pack}-{pattern}-{'l2' if qk_l2_norm else 'plain'}"
                errors[name] = relative_error(interpret(inputs), inputs.expected())
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
