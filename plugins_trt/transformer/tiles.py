"""How the work of the transformer's kernels is divided among programs, as measured on an H100."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HEAD_DIM = 64
ROW_BLOCK = 1024  # values of a row that are read at once
PROGRAMS = 132  # of a persistent kernel: multiprocessors of an H100

Layer = Literal["qkv", "proj", "fc1", "fc2", "head"]
LAYERS: tuple[Layer, ...] = ("qkv", "proj", "fc1", "fc2", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What one program of a linear layer computes, and how.

    Attributes:
        rows, columns: of the output, BLOCK_M and BLOCK_N; powers of two, at least 16.
        depth: of one step, BLOCK_K.
        splits: programs that share an output tile.
        is_wide: computed by `wide_kernel`, of which PROGRAMS programs take turns at all tiles.
        group: row tiles that are computed together, GROUP_M.
        num_warps: of the program.
        num_stages: steps whose loads are in flight.
    """

    rows: int
    columns: int
    depth: int = 128
    splits: int = 1
    is_wide: bool = False
    group: int = 8
    num_warps: int = 4
    num_stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters."""
        constants = {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "GROUP_M": self.group,
        }
        return constants if self.is_wide else {**constants, "SPLITS": self.splits}

    def count(self, rows: int, columns: int) -> int:
        """Tiles of an output."""
        return -(-rows // self.rows) * -(-columns // self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTile:
    """Queries of one program of the attention, and keys of one step."""

    queries: int
    keys: int
    num_warps: int = 4
    num_stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters."""
        return {"BLOCK_Q": self.queries, "BLOCK_L": self.keys}


FEW = Tile(rows=16, columns=32, num_stages=4)
SOME = Tile(rows=16, columns=64, num_stages=4)
SOME_QUARTERS = Tile(rows=16, columns=64, splits=4, num_stages=4)
NARROW = Tile(rows=64, columns=32)
NARROW_QUARTERS = Tile(rows=64, columns=32, splits=4)
SQUARE = Tile(rows=64, columns=64)
SQUARE_SHALLOW = Tile(rows=64, columns=64, depth=64, num_stages=4)
QUARTERS = Tile(rows=64, columns=64, splits=4)
LONG = Tile(rows=64, columns=128, depth=64, num_stages=4)
HALVES = Tile(rows=64, columns=128, splits=2)
LARGE = Tile(rows=128, columns=128, depth=64, num_warps=8, num_stages=4)
BROAD = Tile(rows=128, columns=128, depth=64, is_wide=True, num_warps=8, num_stages=4)
WIDE = Tile(rows=128, columns=256, depth=64, is_wide=True, num_warps=8)
HEAD = Tile(rows=64, columns=128, depth=64)

TILES: dict[Layer, dict[int, Tile]] = {
    "qkv": {
        0: FEW, 17: SOME, 33: NARROW, 65: SQUARE, 129: LONG, 257: SQUARE_SHALLOW,
        1537: LARGE, 1793: BROAD, 3073: WIDE,
    },
    "proj": {
        0: Tile(rows=16, columns=32, splits=4), 17: SOME_QUARTERS, 33: NARROW_QUARTERS,
        65: Tile(rows=64, columns=32, splits=2), 257: SQUARE, 769: LONG, 1537: LARGE, 4097: WIDE,
    },
    "fc1": {0: FEW, 17: SOME, 33: NARROW, 129: SQUARE_SHALLOW, 385: LARGE, 1537: WIDE},
    "fc2": {
        0: Tile(rows=16, columns=32, splits=8), 17: SOME_QUARTERS, 33: NARROW_QUARTERS,
        97: QUARTERS, 257: HALVES, 769: Tile(rows=64, columns=128), 1537: LARGE, 3073: WIDE,
    },
    "head": {0: Tile(rows=16, columns=64, depth=64, num_stages=4), 33: HEAD, 1537: WIDE},
}  # fmt: skip
"""By layer and number of rows from which on."""

ATTENTION_TILES = {
    0: AttentionTile(queries=16, keys=16, num_warps=2, num_stages=1),
    17: AttentionTile(queries=64, keys=64),
    256: AttentionTile(queries=128, keys=64, num_warps=8),
}
"""By number of tokens from which on."""
