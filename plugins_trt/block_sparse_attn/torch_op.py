"""The op in PyTorch: checked against the contract when run, one ONNX node when exported.

CUDA tensors go through the Triton kernel, tensors on the CPU through the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.block_sparse_attn import reference, spec
from plugins_trt.block_sparse_attn.onnx_function import node_attributes


@torch.library.custom_op("hmar::block_sparse_attention", mutates_args=(), device_types="cpu")
def block_sparse_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    sm_scale: float,
    pattern: str,
    qk_l2_norm: bool,
) -> Tensor:
    """Attention output (B, T, H * d); arguments as in `spec`.

    Raises:
        ValueError: shapes or attributes do not fit the contract.
    """
    _checked(qkv, cu_seqlens, scale_mul, sm_scale, pattern, qk_l2_norm)
    return reference.block_sparse_attention(
        qkv, cu_seqlens, scale_mul, sm_scale=sm_scale, pattern=pattern, qk_l2_norm=qk_l2_norm
    )


@block_sparse_attention.register_kernel("cuda")
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    sm_scale: float,
    pattern: str,
    qk_l2_norm: bool,
) -> Tensor:
    from plugins_trt.block_sparse_attn.jit import run_kernel  # Triton is needed on a GPU only

    attributes = _checked(qkv, cu_seqlens, scale_mul, sm_scale, pattern, qk_l2_norm)
    return run_kernel(*qkv.contiguous().unbind(2), cu_seqlens, scale_mul, attributes)


def _checked(
    qkv: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    sm_scale: float,
    pattern: str,
    qk_l2_norm: bool,
) -> spec.Attributes:
    spec.check_shapes(
        qkv.shape, cu_seqlens.shape, None if scale_mul is None else scale_mul.shape, qk_l2_norm
    )
    return spec.Attributes(sm_scale=sm_scale, pattern=pattern, qk_l2_norm=qk_l2_norm)


@block_sparse_attention.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    sm_scale: float,
    pattern: str,
    qk_l2_norm: bool,
) -> Tensor:
    B, T, _, H, d = qkv.shape
    return qkv.new_empty((B, T, H * d))


def attend(
    qkv: Tensor, cu_seqlens: Tensor, scale_mul: Tensor | None, attributes: spec.Attributes
) -> Tensor:
    """Attention output (B, T, H * d).

    Under torch.export it becomes one node of the op, for torch.onnx.
    """
    if not torch.compiler.is_exporting():
        return block_sparse_attention(
            qkv,
            cu_seqlens,
            scale_mul,
            attributes.sm_scale,
            attributes.pattern,
            attributes.qk_l2_norm,
        )
    B, T, _, H, d = qkv.shape
    return torch.onnx.ops.symbolic(
        f"{spec.OP_DOMAIN}::{spec.OP_NAME}",
        [qkv, cu_seqlens] if scale_mul is None else [qkv, cu_seqlens, scale_mul],
        attrs=node_attributes(attributes),
        dtype=qkv.dtype,
        shape=(B, T, H * d),
        version=spec.OPSET_VERSION,
    )
