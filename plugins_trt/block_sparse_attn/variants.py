"""Which tiles the kernel is compiled with, and which one a call gets.

The rule is data, so that the just-in-time path, the ahead-of-time build and its launcher choose
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
HEAD_DIMS = (64, 80, 128)


NORMALIZE_BLOCK = 64  # keys of one program of `normalize_keys_kernel`
NORMALIZE_WARPS = 4


class Norm(Enum):
    """Where the norms of the keys are taken."""

    NONE = 0
    IN_STEPS = 1
    BEFOREHAND = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Sizes of one program, and from how much work on it is taken.

    Attributes:
        block_m: positions of one program.
        block_n: keys of one step.
        num_warps: warps of one program.
        num_stages: steps whose loads are in flight.
        normalizes_keys: with q/k L2 norm, the keys are normalised beforehand; that is a second,
            short kernel and a workspace of the keys' size.
        min_programs: smallest number of programs for which the tile is taken.
        min_block: smallest mean length of the blocks for which the tile is taken.
        max_registers: of a thread, so that more programs fit a multiprocessor; None leaves it to
            the compiler.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    normalizes_keys: bool = False
    min_programs: int = 0
    min_block: int = 0
    max_registers: int | None = None

    def norm(self, qk_l2_norm: bool) -> Norm:
        """Where the norms of the keys are taken."""
        if not qk_l2_norm:
            return Norm.NONE
        return Norm.BEFOREHAND if self.normalizes_keys else Norm.IN_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One compiled kernel."""

    dtype: Dtype
    head_dim: int
    qk_l2_norm: bool
    tile: Tile

    @property
    def name(self) -> str:
        norm = "_l2" if self.qk_l2_norm else ""
        return f"bsa_{self.dtype}_d{self.head_dim}{norm}_m{self.tile.block_m}n{self.tile.block_n}"

    @property
    def norm(self) -> Norm:
        return self.tile.norm(self.qk_l2_norm)


# Chosen on an H100 for heads of 64 (docs/benchmarks.md): long blocks; blocks that fill a tile;
# packs of short blocks, where a wide step would mostly be masked; too few positions for large
# tiles. The wider heads and float32 have not been tuned.
_HALF = (
    Tile(
        block_m=128, block_n=64, num_warps=8, num_stages=3,
        normalizes_keys=True, min_programs=256, min_block=1024, max_registers=128,
    ),
    Tile(
        block_m=64, block_n=64, num_warps=4, num_stages=3,
        normalizes_keys=True, min_programs=64, min_block=48, max_registers=128,
    ),
    Tile(block_m=64, block_n=32, num_warps=4, num_stages=2, min_programs=64),
    Tile(block_m=16, block_n=64, num_warps=4, num_stages=2),
)  # fmt: skip
_HALF_WIDE = (
    Tile(block_m=64, block_n=32, num_warps=4, num_stages=3, normalizes_keys=True, min_programs=64),
    Tile(block_m=16, block_n=32, num_warps=4, num_stages=2),
)
_FLOAT = (Tile(block_m=32, block_n=32, num_warps=4, num_stages=2),)
_FLOAT_WIDE = (Tile(block_m=32, block_n=32, num_warps=8, num_stages=2),)


def tiles(dtype: Dtype, head_dim: int) -> tuple[Tile, ...]:
    """Tiles in the order in which they are tried; the last one takes any call."""
    if dtype == "float32":
        return _FLOAT if head_dim <= 64 else _FLOAT_WIDE
    return _HALF if head_dim <= 64 else _HALF_WIDE


def choose_tile(
    dtype: Dtype, head_dim: int, *, batch: int, length: int, heads: int, num_blocks: int
) -> Tile:
    """The first tile that has enough programs and long enough blocks."""
    for tile in tiles(dtype, head_dim):
        programs = -(-length // tile.block_m) * heads * batch
        if programs >= tile.min_programs and length >= tile.min_block * num_blocks:
            return tile
    raise AssertionError("the last tile takes any call")


def variants() -> tuple[Variant, ...]:
    """All kernels of the ahead-of-time build."""
    return tuple(
        Variant(dtype=dtype, head_dim=head_dim, qk_l2_norm=qk_l2_norm, tile=tile)
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for qk_l2_norm in (False, True)
        for tile in tiles(dtype, head_dim)
    )
