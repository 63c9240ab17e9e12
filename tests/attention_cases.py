"""Inputs of the attention op on awkward shapes, and its float64 result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plugins_trt.block_sparse_attn.reference import block_sparse_attention
from plugins_trt.block_sparse_attn.spec import Attributes, Pattern

PACKS: dict[str, tuple[int, ...]] = {
    "one-token": (1,),
    "one-block": (9,),
    "pyramid": (1, 4, 9, 16, 25, 36, 64, 100),
    "empty-blocks": (0, 3, 0, 0, 67, 0),
    "many-short": (1, 1, 2, 1, 3, 1, 1) * 20,
    "more-blocks-than-a-scan": (1,) * 150 + (0,) * 200 + (5,) * 20,
    "long-and-short": (7, 300, 1, 1, 129),
    "on-the-tile": (64, 128, 192),
}
LARGE_PACKS: dict[str, tuple[int, ...]] = {
    "pyramid-256": (1, 4, 9, 16, 25, 36, 64, 100, 169, 256),
    "pyramid-512": (1, 4, 9, 16, 36, 81, 169, 324, 576, 1024),
    "one-long": (4096,),
    "long-after-many-short": (*((1, 4, 9) * 60), 2500),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs of one call, and the attributes it goes with."""

    qkv: Tensor
    cu_seqlens: Tensor
    scale_mul: Tensor | None
    attributes: Attributes

    def expected(self) -> Tensor:
        """The result in float64, from the stored inputs."""
        scale_mul = None if self.scale_mul is None else self.scale_mul.double()
        a = self.attributes
        return block_sparse_attention(
            self.qkv.double(),
            self.cu_seqlens,
            scale_mul,
            sm_scale=a.sm_scale,
            pattern=a.pattern,
            qk_l2_norm=a.qk_l2_norm,
        )


def make_inputs(
    lengths: tuple[int, ...],
    dtype: torch.dtype,
    pattern: Pattern,
    qk_l2_norm: bool,
    *,
    batch: int = 2,
    heads: int = 3,
    head_dim: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """Normal queries, keys and values; one head's `scale_mul` is negative."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (batch, sum(lengths), 3, heads, head_dim)
    qkv = torch.randn(shape, generator=generator, device=device).to(dtype)
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    scale_mul = torch.linspace(12.0, -3.0, heads, device=device) if qk_l2_norm else None
    return Inputs(
        qkv=qkv,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        scale_mul=scale_mul,
        attributes=Attributes(
            sm_scale=1.0 if qk_l2_norm else head_dim**-0.5, pattern=pattern, qk_l2_norm=qk_l2_norm
        ),
    )


def relative_error(out: Tensor, expected: Tensor) -> float:
    """`|out - expected| / |expected|`; NaN where `out` has one."""
    return ((out.double() - expected).norm() / expected.norm()).item()
