"""Runs the kernels between the passes in Triton's interpreter; prints their distance to PyTorch.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_trt.glue.jit import (
    add_own,
    embed,
    embed_classes,
    embed_first,
    enlarge,
    modulate,
    phi,
    reduce,
)

NAN = float("nan")
HALF = torch.float16


def difference(out: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest expected value."""
    return float((out.double() - expected.double()).abs().max() / expected.abs().max())


def check_conditioning() -> dict[str, float]:
    """Of three layers, and more rows than a program has."""
    g = torch.Generator().manual_seed(0)
    N, C, L, width = 70, 64, 3, 128
    class_emb = torch.randn((11, C), generator=g).to(HALF)
    labels = torch.randint(0, 11, (N,), generator=g, dtype=torch.int32)
    cond, act = (torch.full((N, C), NAN, dtype=HALF) for _ in range(2))
    embed_classes(labels, class_emb, cond, act)
    memory = torch.randn((L, C * width + width), generator=g).to(HALF) * 0.1
    weights, biases = memory[:, : C * width].view(L, C, width), memory[:, C * width :]
    out = torch.full((N, L, width), NAN, dtype=HALF)
    modulate(act, weights, biases, out)
    shared = torch.full((N, L, width), NAN, dtype=HALF)
    add_own(out[:, 0].contiguous(), biases, shared)
    rows = class_emb[labels.long()]
    expected = F.silu(rows.double())
    products = torch.einsum("nc,lcw->nlw", act.double(), weights.double())
    return {
        "class": difference(cond, rows),
        "silu": difference(act, expected),
        "modulation": difference(out, products + biases.double()),
        "shared-modulation": difference(shared, out[:, :1].double() + biases.double()),
    }


def check_embeddings() -> dict[str, float]:
    """Against `export.modules`, of two images with nine tokens."""
    g = torch.Generator().manual_seed(1)
    N, l, K, C = 2, 9, 16, 128
    x, h = torch.randn((2, N, l, K), generator=g)
    word_embed, pos = torch.randn((K, C), generator=g).to(HALF), torch.randn((30, C), generator=g)
    pos, mask_embed = pos.to(HALF), torch.randn(C, generator=g).to(HALF)
    positions = torch.arange(5, 5 + l, dtype=torch.int32)
    token_mask = torch.rand((N, l), generator=g) < 0.5
    found = {}
    out = torch.full((N, l, C), NAN, dtype=HALF)
    embed(x, word_embed, pos, positions, out)
    embedded, at = (m.to(HALF).double() @ word_embed.double() for m in (x, h)), pos[5 : 5 + l]
    of_x, of_h = embedded
    found["embed"] = difference(out, of_x + at.double())
    masked = torch.full((N, l, C), NAN, dtype=HALF)
    embed(x, word_embed, pos, positions, masked, (h, token_mask, mask_embed))
    of_h = torch.where(token_mask[..., None], mask_embed.double(), of_h)
    found["embed-masked"] = difference(masked, of_x + of_h + at.double())
    cond = torch.randn((N, C), generator=g).to(HALF)
    first = torch.full((N, 1, C), NAN, dtype=HALF)
    embed_first(cond, pos, first)
    found["embed-first"] = difference(first[:, 0], cond + pos[0])
    return found


def check_quantizer(side: int, pn: int, reduced: int) -> dict[str, float]:
    """Of two images; PyTorch's bicubic enlargement and adaptive average are the reference."""
    g = torch.Generator().manual_seed(2)
    B, C, V = 2, 16, 40
    tokens = torch.randint(0, V, (B, pn, pn), generator=g, dtype=torch.int32)
    codebook = torch.randn((V, C), generator=g)
    weights = torch.randn((C, C, 3, 3), generator=g) / 12
    bias, f_hat = torch.randn(C, generator=g), torch.randn((B, C, side, side), generator=g)
    h = torch.full((B, side, side, C), NAN)
    enlarge(tokens, codebook, h)
    map_BChw = codebook[tokens.long()].movedim(3, 1).double()
    enlarged = F.interpolate(map_BChw, size=(side, side), mode="bicubic")
    found = {"enlarge": difference(h.movedim(3, 1), enlarged)}
    last = weights.permute(2, 3, 1, 0).contiguous()
    expected = enlarged / 2 + F.conv2d(enlarged, weights.double(), bias.double(), padding=1) / 2
    for name, before in (("phi", None), ("quantize", f_hat)):
        out = torch.full_like(f_hat, NAN)
        phi(h, last, bias, before, out)
        found[name] = difference(out, expected + (0 if before is None else before))
    cells = torch.full((B, reduced * reduced, C), NAN)
    reduce(f_hat, cells)
    averages = F.adaptive_avg_pool2d(f_hat.double(), (reduced, reduced))
    found["reduce"] = difference(cells, averages.flatten(2).transpose(1, 2))
    return found


SIZES = ((16, 3, 4), (16, 16, 10), (5, 2, 3), (20, 1, 2))


def main() -> None:
    found = {"conditioning": check_conditioning(), "embeddings": check_embeddings()}
    for side, pn, reduced in SIZES:
        found[f"quantizer-{side}-{pn}-{reduced}"] = check_quantizer(side, pn, reduced)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
