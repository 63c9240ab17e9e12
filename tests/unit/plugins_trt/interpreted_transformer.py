"""Runs the transformer's kernels in Triton's interpreter; prints how far they are from PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_trt.transformer import kernel
from plugins_trt.transformer.jit import attend, linear, normalize
from plugins_trt.transformer.tiles import AttentionTile, Tile
from plugins_trt.transformer.weights import split

NAN = float("nan")
TILES = {
    "whole": Tile(rows=16, columns=32, depth=64),
    "split": Tile(rows=16, columns=16, depth=32, splits=3),
}


def rms_ratio(out: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of the expected values."""
    return float((out.double() - expected).norm() / expected.norm())


def check_linear(tile: Tile, images: int, length: int) -> dict[str, float]:
    """Every epilogue, of a layer from 128 to 48 values."""
    g = torch.Generator().manual_seed(0)
    R, k, n = images * length, 128, 48
    x = torch.randn((R, k), generator=g).half()
    weights = (torch.randn((k, n), generator=g) / k**0.5).half()
    bias, residual = torch.randn(n, generator=g).half(), torch.randn((R, n), generator=g).half()
    ada = torch.randn((images, 2 * n), generator=g).half()
    expected = x.double() @ weights.double() + bias.double()
    gate = ada[:, n:].double().repeat_interleave(length, dim=0)

    def empty() -> Tensor:
        return torch.full((R, n), NAN, dtype=torch.float16)

    gated = linear(
        x, weights, bias, residual.clone(), tile=tile, length=length, residual_Rn=residual,
        ada_NC=ada, gate_at=n,
    )  # fmt: skip
    gelu = F.gelu(expected, approximate="tanh")
    return {
        "plain": rms_ratio(linear(x, weights, bias, empty(), tile=tile), expected),
        "gelu": rms_ratio(linear(x, weights, bias, empty(), tile=tile, epilogue=kernel.GELU), gelu),
        "residual": rms_ratio(gated, residual.double() + gate * expected),
    }


def check_logits(tile: Tile) -> dict[str, float]:
    """A float32 layer of normalised rows, by halves."""
    g = torch.Generator().manual_seed(1)
    R, C, V = 9, 64, 48
    x, ada = (torch.randn((R, C), generator=g) * 3 + 1).half(), torch.randn((3, 2 * C), generator=g)
    ada, weights = ada.half(), torch.randn((C, V), generator=g) / 8
    bias, halves = torch.randn(V, generator=g), torch.from_numpy(split(weights.numpy()))
    both = normalize(
        x, ada, torch.full((R, 2 * C), NAN, dtype=torch.float16), length=3, scale_at=0, shift_at=C
    )
    out = linear(both, halves, bias, torch.full((R, V), NAN), tile=tile, has_low=True)
    return {"out": rms_ratio(out, norm(x, ada, 3, C) @ weights.double() + bias.double())}


def norm(x_RC: Tensor, ada: Tensor, length: int, shift_at: int) -> Tensor:
    """Layer norm, with the scale first and the shift at `shift_at`."""
    C = x_RC.shape[1]
    rows = ada.double().repeat_interleave(length, dim=0)
    scale, shift = rows[:, :C], rows[:, shift_at : shift_at + C]
    return F.layer_norm(x_RC.double(), (C,), eps=1e-6) * (1 + scale) + shift


def check_norm() -> dict[str, float]:
    g = torch.Generator().manual_seed(2)
    R, C = 6, 1088  # more than is read at once
    x, ada = (torch.randn((R, C), generator=g) * 2 + 3).half(), torch.randn((2, 3 * C), generator=g)
    out = torch.full((R, C), NAN, dtype=torch.float16)
    normalize(x, ada.half(), out, length=3, scale_at=0, shift_at=2 * C)
    return {"out": rms_ratio(out, norm(x, ada.half(), 3, 2 * C))}


def check_attention(images: int, length: int, tile: AttentionTile) -> dict[str, float]:
    g = torch.Generator().manual_seed(3)
    H, d = 2, 64
    qkv = torch.randn((images, length, 3, H, d), generator=g).half()
    scale_mul = torch.rand(H, generator=g) * 20 + 1
    out = torch.full((images, length, H * d), NAN, dtype=torch.float16)
    attend(qkv.flatten(3), scale_mul, out, tile=tile)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
    p = (logits * scale_mul.double()[:, None, None]).softmax(-1)
    return {"out": rms_ratio(out, (p @ v).transpose(1, 2).flatten(2))}


def main() -> None:
    found = {"norm": check_norm()}
    for name, tile in TILES.items():
        for images, length in ((1, 1), (2, 25)):
            found[f"linear-{name}-{images}x{length}"] = check_linear(tile, images, length)
        found[f"logits-{name}"] = check_logits(tile)
    small = AttentionTile(queries=16, keys=16)
    for images, length in ((1, 1), (2, 9), (1, 37)):
        found[f"attention-{images}x{length}"] = check_attention(images, length, small)
        whole = AttentionTile(queries=16, keys=64, is_whole=True)
        found[f"whole-attention-{images}x{length}"] = check_attention(images, length, whole)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
