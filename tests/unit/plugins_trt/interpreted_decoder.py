"""Runs the decoder's kernels in Triton's interpreter; prints how far they are from PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_trt.decoder.jit import (
    attend,
    convolve,
    from_planes,
    from_tokens,
    group_norm,
    make_sums,
    normalize,
    to_image,
)
from plugins_trt.decoder.tiles import Tile
from plugins_trt.decoder.weights import channels_last, fold_upsampling

SMALL = Tile(height=4, width=8, channels=16, depth=16)
SPLIT = Tile(height=4, width=4, channels=32, rest=16, depth=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A convolution; sizes are batch, height, width, channels in and out."""

    sizes: tuple[int, int, int, int, int]
    side: int = 3
    tile: Tile = SMALL
    upsamples: bool = False
    has_residual: bool = False


CASES = {
    "plain": Case(sizes=(2, 5, 9, 32, 16)),
    "pointwise": Case(sizes=(3, 3, 5, 48, 20), side=1),
    "one-pixel": Case(sizes=(2, 1, 1, 16, 16)),
    "to-pixels": Case(sizes=(1, 6, 7, 16, 3)),
    "from-pixels": Case(sizes=(1, 6, 7, 3, 16)),
    "split-channels": Case(sizes=(1, 5, 6, 32, 48), tile=SPLIT, has_residual=True),
    "split-and-masked": Case(sizes=(2, 5, 3, 40, 52), tile=SPLIT),
    "residual": Case(sizes=(2, 3, 9, 24, 20), has_residual=True),
    "upsampled": Case(sizes=(2, 3, 5, 24, 20), upsamples=True),
    "upsampled-split": Case(sizes=(1, 2, 5, 32, 48), upsamples=True, tile=SPLIT),
}
ATTENTION_SIZES = {"one-block": (2, 16, 64), "many-blocks": (1, 80, 128), "odd": (2, 67, 64)}
NORM_SIZES = {"one-tile": (2, 3, 5, 64), "many-tiles": (2, 10, 13, 64), "odd": (1, 7, 11, 160)}


def rms_ratio(out: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of the expected values."""
    return float((out.double() - expected).norm() / expected.norm())


def expected_sums(out_BhwC: Tensor) -> Tensor:
    pixels = out_BhwC.double().flatten(1, 2)
    return torch.stack((pixels.sum(1), pixels.square().sum(1)), dim=1)


def check_convolution(case: Case) -> dict[str, float]:
    """Relative errors against float64, of the output and of the sums of what was written."""
    g = torch.Generator().manual_seed(0)
    B, h, w, Cin, Cout = case.sizes
    x = torch.randn((B, h, w, Cin), generator=g).half()
    weights = torch.randn((Cout, Cin, case.side, case.side), generator=g) * Cin**-0.5 / case.side
    last = torch.from_numpy(channels_last(weights.half().float().numpy()))
    if case.upsamples:
        last = torch.from_numpy(fold_upsampling(last.numpy()))
    last = last.half()
    bias = torch.randn(Cout, generator=g)
    factor = 2 if case.upsamples else 1
    shape = (B, factor * h, factor * w, Cout)
    residual = torch.randn(shape, generator=g).half() if case.has_residual else None

    a = x.double().permute(0, 3, 1, 2)
    a = F.interpolate(a, scale_factor=2.0, mode="nearest") if case.upsamples else a
    rounded = weights.half().double()
    expected = F.conv2d(a, rounded, bias.double(), padding=case.side // 2).permute(0, 2, 3, 1)
    if residual is not None:
        expected = expected + residual.double()

    out = torch.full(shape, float("nan"), dtype=torch.float16)
    sums = make_sums(x, last, case.tile).fill_(float("nan"))
    convolve(x, last, bias, tile=case.tile, residual=residual, sums=sums, out=out)
    return {
        "out": rms_ratio(out, expected),
        "sums": rms_ratio(sums.sum(1), expected_sums(out)),
    }


def check_norm(sizes: tuple[int, int, int, int], has_silu: bool) -> dict[str, float]:
    """Relative error of the normalised map."""
    _, h, w, C = sizes
    g = torch.Generator().manual_seed(1)
    x = (torch.randn(sizes, generator=g) * 2 + 3).half()
    gain, bias = torch.randn((2, C), generator=g)
    tiles = torch.tensor_split(x.flatten(1, 2), min(5, h * w), dim=1)
    sums = torch.stack([expected_sums(tile[:, None]) for tile in tiles], dim=1).float()
    scale_shift = group_norm(sums, gain, bias, num_pixels=h * w, num_groups=32, eps=1e-6)
    out = normalize(x, scale_shift, has_silu=has_silu, out=torch.full_like(x, float("nan")))
    expected = F.group_norm(x.double().movedim(3, 1), 32, gain.double(), bias.double(), eps=1e-6)
    expected = (F.silu(expected) if has_silu else expected).movedim(1, 3)
    return {"out": rms_ratio(out, expected)}


def check_attention(sizes: tuple[int, int, int]) -> dict[str, float]:
    B, l, C = sizes
    g = torch.Generator().manual_seed(2)
    qkv = torch.randn((B, l, 3 * C), generator=g).half()
    out = attend(qkv, torch.full(sizes, float("nan"), dtype=torch.float16))
    q, k, v = qkv.double().chunk(3, dim=-1)
    scores = q @ k.transpose(1, 2) * C**-0.5
    return {"out": rms_ratio(out, scores.softmax(dim=-1) @ v)}


def check_layouts() -> dict[str, float]:
    """Differences in either direction."""
    g = torch.Generator().manual_seed(3)
    planes = torch.randn((2, 6, 150), generator=g)
    last = from_planes(planes, torch.full((2, 150, 6), float("nan"), dtype=torch.float16))
    x = torch.randn((2, 150, 3), generator=g).half()
    image = to_image(x, torch.full((2, 3, 150), float("nan")))
    kept = to_image(x, torch.full((2, 3, 150), float("nan")), clamps=False)
    expected = x.float().transpose(1, 2)
    tokens = torch.randn((3, 49, 16), generator=g)  # more than one program, and an odd rest
    out = torch.full(tokens.shape, float("nan"), dtype=torch.float16)
    scaled = from_tokens(tokens, out, factor=1 / 0.2325)
    return {
        "from-planes": float((last - planes.half().transpose(1, 2)).abs().max()),
        "from-tokens": float((scaled - (tokens * (1 / 0.2325)).half()).abs().max()),
        "to-image": float((image - (expected.clamp(-1, 1) / 2 + 0.5)).abs().max()),
        "to-image-unclamped": float((kept - (expected / 2 + 0.5)).abs().max()),
    }


def main() -> None:
    found = {f"conv-{name}": check_convolution(case) for name, case in CASES.items()}
    for name, sizes in NORM_SIZES.items():
        found[f"norm-{name}"] = check_norm(sizes, has_silu=False)
        found[f"norm-silu-{name}"] = check_norm(sizes, has_silu=True)
    for name, attention_sizes in ATTENTION_SIZES.items():
        found[f"attention-{name}"] = check_attention(attention_sizes)
    found["layouts"] = check_layouts()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
