"""The C launcher (`csrc/bsa.h`), called from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from plugins_trt.block_sparse_attn.spec import PATTERNS, Attributes
from plugins_trt.block_sparse_attn.variants import DTYPES


class Params(ctypes.Structure):
    """`bsa_params`."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("q", "k", "v", "o", "cu_seqlens", "scale_mul", "workspace")
        ),
        *((name, ctypes.c_int64) for name in ("stride_b", "stride_t", "stride_h")),
        *(
            (name, ctypes.c_int32)
            for name in ("batch", "length", "heads", "head_dim", "num_blocks")
        ),
        ("sm_scale", ctypes.c_float),
        ("dtype", ctypes.c_int),
        ("pattern", ctypes.c_int),
    )


class Launcher:
    """Functions of a library that holds the launcher."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("bsa_check", "bsa_kernel_name", "bsa_version", "bsa_architectures"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.bsa_workspace_bytes.restype = ctypes.c_size_t

    @property
    def version(self) -> str:
        return self._library.bsa_version().decode()

    @property
    def architectures(self) -> tuple[int, ...]:
        return tuple(int(arch) for arch in self._library.bsa_architectures().decode().split(","))

    def kernel_name(self, params: Params, compute_capability: int) -> str | None:
        name = self._library.bsa_kernel_name(ctypes.byref(params), compute_capability)
        return None if name is None else name.decode()

    def workspace_bytes(self, dtype: torch.dtype, qk_l2_norm: bool, q_shape: Sequence[int]) -> int:
        B, T, H, d = q_shape
        return self._library.bsa_workspace_bytes(_dtype(dtype), d, qk_l2_norm, B, T, H)

    def launch(self, params: Params, stream: int) -> int:
        """A `cudaError_t`."""
        return self._library.bsa_launch(ctypes.byref(params), ctypes.c_void_p(stream))


def _dtype(dtype: torch.dtype) -> int:
    return DTYPES.index(str(dtype).removeprefix("torch."))


def params_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    cu_seqlens: Tensor,
    scale_mul: Tensor | None,
    workspace: Tensor,
    attributes: Attributes,
) -> Params:
    """Parameters for q, k, v (B, T, H, d) of equal strides."""
    B, T, H, d = q.shape
    return Params(
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        o=o.data_ptr(),
        cu_seqlens=cu_seqlens.data_ptr(),
        scale_mul=None if scale_mul is None else scale_mul.data_ptr(),
        workspace=workspace.data_ptr(),
        stride_b=q.stride(0),
        stride_t=q.stride(1),
        stride_h=q.stride(2),
        batch=B,
        length=T,
        heads=H,
        head_dim=d,
        num_blocks=len(cu_seqlens) - 1,
        sm_scale=attributes.sm_scale,
        dtype=_dtype(q.dtype),
        pattern=PATTERNS.index(attributes.pattern),
    )
