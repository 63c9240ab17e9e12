"""Shapes of `scripts/bench_attention.py`, with the least work each needs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from plugins_trt.block_sparse_attn.spec import Pattern

# Sides of the token maps; 256 and 512 px are the published models', 1024 px continues them.
PYRAMIDS = {
    "pyramid-256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "pyramid-512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "pyramid-1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
SINGLE_SIDES = (1, 2, 4, 6, 8, 13, 16, 24, 32, 48, 64)
SHORT_SIDES = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One benchmark case.

    Attributes:
        name: for tables.
        lengths: of the blocks of one row.
        batch: rows.
        heads: attention heads.
        head_dim: width of a head.
        pattern: who attends to whom.
        qk_l2_norm: whether q and k are normalised inside.
    """

    name: str
    lengths: tuple[int, ...]
    batch: int
    heads: int
    pattern: Pattern
    qk_l2_norm: bool
    head_dim: int = 64

    @property
    def length(self) -> int:
        return sum(self.lengths)

    @property
    def flops(self) -> int:
        """Of the two matrix products, over the pairs that attend to each other."""
        pairs, before = 0, 0
        for length in self.lengths:
            before += length
            pairs += length * (length if self.pattern == "block_diagonal" else before)
        return 4 * self.batch * self.heads * self.head_dim * pairs

    def num_bytes(self, itemsize: int = 2) -> int:
        """Of q, k, v and o, each once."""
        return 4 * self.batch * self.length * self.heads * self.head_dim * itemsize


def pyramid_shapes(heads: list[int], norms: tuple[bool, ...]) -> list[Shape]:
    """Whole pyramids, as scoring and packed requests have them."""
    patterns: tuple[Pattern, ...] = ("block_diagonal", "block_causal")
    return [
        Shape(
            name=name,
            lengths=tuple(pn * pn for pn in sides),
            batch=4,
            heads=h,
            pattern=pattern,
            qk_l2_norm=norm,
        )
        for norm in norms
        for name, sides in PYRAMIDS.items()
        for pattern in patterns
        for h in heads
    ]


def single_shapes(heads: int, batch: int) -> list[Shape]:
    """One scale at a time, as the sampling loop runs them."""
    return [
        Shape(
            name=f"single-{pn * pn}",
            lengths=(pn * pn,),
            batch=batch,
            heads=heads,
            pattern="block_diagonal",
            qk_l2_norm=norm,
        )
        for norm in (False, True)
        for pn in SINGLE_SIDES
    ]


def short_packs(heads: int) -> list[Shape]:
    """Packs of many short blocks of mixed lengths."""
    shapes = []
    for count in (64, 512, 4096):
        draw = random.Random(count)
        lengths = tuple(draw.choice(SHORT_SIDES) ** 2 for _ in range(count))
        shapes.append(
            Shape(
                name=f"short-{count}",
                lengths=lengths,
                batch=1,
                heads=heads,
                pattern="block_diagonal",
                qk_l2_norm=False,
            )
        )
    return shapes
