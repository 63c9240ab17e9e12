"""How the work of the transformer's kernels is divided among programs, as measured on an H100."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

HEAD_DIM = 64
PROGRAMS = {1: 132, 2: 132, 3: 126}
"""Of a persistent kernel that run at once on the 132 multiprocessors of an H100, by the number of
neighbours that share weights: these lie in one group of 16 or 18 multiprocessors."""

Layer = Literal["qkv", "proj", "fc1", "fc2", "head", "silu", "ada", "gelu_erf"]
LAYERS: tuple[Layer, ...] = get_args(Layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What one program of a linear layer computes, and how.

    Attributes:
        rows, columns: of the output, BLOCK_M and BLOCK_N; powers of two, at least 16.
        depth: of one step, BLOCK_K.
        splits: programs that share an output tile.
        group: row tiles that are computed together, GROUP_M.
        num_warps: of the program.
        num_stages: steps whose loads are in flight.
    """

    rows: int
    columns: int
    depth: int = 128
    splits: int = 1
    group: int = 8
    num_warps: int = 4
    num_stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "GROUP_M": self.group,
            "SPLITS": self.splits,
        }

    def count(self, rows: int, columns: int) -> int:
        """Tiles of an output."""
        return -(-rows // self.rows) * -(-columns // self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class WideTile:
    """What one of some neighbouring programs computes of a linear layer at a time, by
    `csrc/linear.cu`; PROGRAMS programs take turns at all tiles.

    Attributes:
        rows, columns: of the output, BLOCK_M and BLOCK_N; multiples of 64.
        cluster: programs, one below the other, that share the weights.
        splits: programs that share an output tile.
        num_stages: steps of 64 values whose loads are in flight.
        cooperates: both warpgroups compute the same tile, rather than one after the other.
        group: times `cluster` row tiles that are computed together, GROUP_M.
    """

    rows: int = 128
    columns: int
    num_stages: int
    cooperates: bool = False
    cluster: int = 2
    splits: int = 1
    group: int = 4

    @property
    def slices(self) -> int:
        """Parts of the depth of a step's weights, so that programs ask for as much each; three
        would not be whole rows of the swizzle."""
        return self.cluster if self.columns // 64 % self.cluster and self.cluster != 3 else 1

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters, and its BLOCK_K."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": 64,
            "GROUP_M": self.group,
            "CLUSTER": self.cluster,
            "SPLITS": self.splits,
            "SLICES": self.slices,
            "STAGES": self.num_stages,
            "COOPERATES": int(self.cooperates),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowTile:
    """What one program of `csrc/narrow.cu` computes of a linear layer.

    Attributes:
        rows: of the output, BLOCK_M; a multiple of 8, up to 256.
        warpgroups: with 64 columns each.
        teams: of so many warpgroups, which take turns at the steps.
        splits: programs that share an output tile, a cluster of up to 8.
        num_stages: steps of 64 values whose loads are in flight.
    """

    rows: int
    warpgroups: int = 1
    teams: int = 1
    splits: int = 1
    num_stages: int

    @property
    def columns(self) -> int:
        """Of the output, BLOCK_N."""
        return 64 * self.warpgroups

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters, and its BLOCK_M, BLOCK_N and BLOCK_K."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": 64,
            "TEAMS": self.teams,
            "CLUSTER": 1,
            "SPLITS": self.splits,
            "STAGES": self.num_stages,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTile:
    """Queries of one program of the attention, and keys of one step, which may be all."""

    queries: int
    keys: int
    is_whole: bool = False
    num_warps: int = 4
    num_stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters."""
        return {"BLOCK_Q": self.queries, "BLOCK_L": self.keys, "IS_WHOLE": int(self.is_whole)}


@dataclass(frozen=True, slots=True, kw_only=True)
class WideAttentionTile:
    """Queries of one program of `csrc/attention.cu`, 64 for each warpgroup.

    Attributes:
        warpgroups: of the program.
        num_stages: steps of 64 keys that its shared memory holds.
    """

    warpgroups: int
    num_stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters, and its BLOCK_Q."""
        return {
            "BLOCK_Q": 64 * self.warpgroups,
            "CLUSTER": 1,
            "WORKERS": self.warpgroups,
            "STAGES": self.num_stages,
        }


AnyTile = Tile | WideTile | NarrowTile


def _few(columns: int, splits: int = 1, num_stages: int = 4) -> Tile:
    return Tile(rows=16, columns=columns, splits=splits, num_stages=num_stages)


def _some(columns: int, splits: int = 1, num_stages: int = 7) -> Tile:
    return Tile(rows=64, columns=columns, depth=64, splits=splits, num_stages=num_stages)


def _narrow(
    rows: int, columns: int = 64, *, splits: int = 1, teams: int = 1, kib: int = 200
) -> NarrowTile:
    """As many stages as fit into so much shared memory, up to 16; with 110 KiB the next kernel's
    programs may lie beside."""
    num_stages = min(16, (kib - 2) * 1024 // ((rows + columns) * 128))
    return NarrowTile(
        rows=rows,
        warpgroups=columns // 64,
        teams=teams,
        splits=splits,
        num_stages=num_stages - num_stages % teams,
    )


LONG = _some(128, num_stages=5)
SQUARE = _some(64, num_stages=5)
FLAT = Tile(rows=64, columns=256, depth=64, num_warps=8, num_stages=4)
LARGE = Tile(rows=128, columns=128, depth=64, num_warps=8, num_stages=4)
HEAD = Tile(rows=64, columns=128, depth=64)
# with so few stages, several programs fit a multiprocessor, and one loads while another stores
TWO = Tile(rows=128, columns=128, depth=64, num_warps=8, num_stages=3)
THREE = _some(128, num_stages=3)
WIDE_128 = WideTile(columns=128, num_stages=6)
WIDE_192 = WideTile(columns=192, num_stages=5)
BOTH_192 = WideTile(columns=192, num_stages=5, cooperates=True)
BOTH_256 = WideTile(columns=256, num_stages=4, cooperates=True)
DEEP = WideTile(rows=256, columns=128, num_stages=4, cooperates=True)
DEEP_ALONE = WideTile(rows=256, columns=128, num_stages=4, cooperates=True, cluster=1)
# of three tiles one below the other
TRIPLE_192 = WideTile(columns=192, num_stages=5, cooperates=True, cluster=3)
BOTH_HALVES = WideTile(columns=128, num_stages=6, cooperates=True, splits=2)

FEW_HEADS = Tile(rows=16, columns=64, depth=64, num_stages=4)

TILES: dict[Layer, dict[int, dict[int, AnyTile]]] = {
    "qkv": {
        0: {0: _few(32, num_stages=6), 17: _some(32), 65: LONG, 769: WIDE_192},
        1024: {
            0: _few(32, num_stages=6), 2: _narrow(8, teams=2), 9: _narrow(24, kib=110),
            25: _narrow(32, kib=110), 33: _some(32), 51: _narrow(72, teams=2),
            73: _narrow(104, teams=2), 105: LONG, 257: _narrow(176), 353: _narrow(208),
            417: _narrow(128), 513: LARGE, 769: THREE, 1025: _narrow(176, 192), 1537: WIDE_192,
        },
        1280: {
            0: _narrow(8, teams=2), 9: _narrow(24, teams=2), 25: _narrow(32), 33: _narrow(72),
            73: _narrow(128), 129: _narrow(176), 177: LARGE, 449: THREE, 769: WIDE_192,
        },
        1664: {
            0: _few(64), 17: _some(64), 65: LONG, 150: LARGE, 300: _narrow(176, 128),
            353: TRIPLE_192, 449: BOTH_192, 577: BOTH_256, 769: WIDE_192,
        },
    },
    "proj": {
        0: {
            0: _few(64, 4), 33: _some(32, 4), 65: _some(32, 2), 130: _some(32), 300: SQUARE,
            1025: LONG, 1537: LARGE, 3001: BOTH_192, 6001: DEEP,
        },
        1024: {
            0: _few(64, 4), 2: _narrow(8, splits=4), 9: _narrow(8, teams=2),
            33: _narrow(24, teams=2), 73: _narrow(32, teams=2), 257: _narrow(64, teams=2),
            449: _narrow(64, 128), 833: LONG, 1025: _narrow(128, 192, splits=2), 1537: LARGE,
            2305: BOTH_192, 3001: DEEP, 6001: DEEP_ALONE,
        },
        1280: {
            0: _narrow(8, splits=4), 9: _narrow(24, splits=4), 25: _narrow(32, splits=4),
            33: _narrow(72, splits=4), 73: _narrow(128, splits=4), 129: _narrow(176, splits=4),
            177: _narrow(48, 128), 385: _narrow(64, 128), 577: LONG,
            769: _narrow(128, 192, splits=2), 1041: LARGE, 1537: BOTH_192, 3001: DEEP_ALONE,
        },
        1664: {
            0: _narrow(8, splits=4), 9: _narrow(24, teams=2), 25: _narrow(32, splits=4),
            33: _narrow(32, teams=2), 129: _narrow(64, teams=2), 257: _narrow(88, 128, splits=2),
            353: LONG, 769: LARGE, 1537: BOTH_192, 3001: DEEP_ALONE,
        },
    },
    "fc1": {
        0: {
            0: _few(32, num_stages=6), 17: _some(32), 73: SQUARE, 1025: TWO, 3001: WIDE_192,
            6001: DEEP_ALONE,
        },
        1024: {
            0: _few(32, num_stages=6), 9: _narrow(24, kib=110), 25: _some(32), 51: _narrow(72),
            73: _narrow(104), 105: _narrow(128), 129: _narrow(176), 177: _narrow(104), 209: SQUARE,
            257: _narrow(176), 353: _narrow(112, 128), 449: _narrow(128, 128),
            513: _narrow(144, 128), 577: _narrow(208, 128), 833: TWO, 1537: WIDE_128,
            2305: WIDE_192,
        },
        1280: {
            0: _few(64), 9: _narrow(24, kib=110), 25: _narrow(40, kib=110), 41: _narrow(72),
            73: _narrow(128), 129: _narrow(176), 177: _narrow(176, 128),
            353: _narrow(144, 192, kib=220), 577: _narrow(176, 192), 769: WIDE_128,
            1025: _narrow(144, 128), 1153: WIDE_128, 1537: WIDE_192,
        },
        1664: {
            0: _few(64), 9: _narrow(24, teams=2), 25: _narrow(32), 33: _narrow(56, kib=110),
            57: _narrow(72), 73: _narrow(104), 105: _narrow(128), 129: _narrow(176),
            177: _narrow(112, 128), 225: _narrow(128, 128), 257: _narrow(176, 128), 353: THREE,
            449: DEEP, 577: FLAT, 769: WIDE_128, 1537: WIDE_192,
        },
    },
    "fc2": {
        0: {
            0: _few(32, 4), 17: _few(64, 4), 33: _some(32, 4), 130: _some(64, 2),
            300: _some(32, 2), 600: LONG, 1537: LARGE, 3001: BOTH_192, 6001: DEEP_ALONE,
        },
        1024: {
            0: _few(32, 4), 9: _narrow(24, splits=4, kib=110), 25: _few(64, 4), 33: _some(32, 4),
            51: _narrow(72, splits=4), 73: _narrow(128, splits=4), 129: _narrow(64, 128, splits=4),
            177: _narrow(56, splits=2), 209: _some(64, 2), 257: _narrow(88, splits=2),
            353: _narrow(104, splits=2), 417: _narrow(128, splits=2),
            513: _narrow(72, 128, splits=2), 577: _narrow(104, 128, splits=2),
            833: _narrow(128, 128, splits=2), 1025: _narrow(128, 192, splits=2, kib=220),
            1537: LARGE, 2305: BOTH_192, 3001: BOTH_256,
        },
        1280: {
            0: _few(64, 4), 9: _narrow(24, splits=4, kib=110), 25: _narrow(32, splits=4, kib=110),
            33: _narrow(72, splits=4), 73: _narrow(128, splits=4), 129: _narrow(176, splits=4),
            177: _narrow(176, 128, splits=4), 353: _narrow(88, 192, splits=2, kib=220),
            577: _narrow(112, 192, splits=2), 769: _narrow(128, 192, splits=2, kib=220),
            1041: _narrow(144, 192, splits=2), 1153: LARGE, 1537: BOTH_192, 3001: DEEP_ALONE,
        },
        1664: {
            0: _few(64, 4), 9: _narrow(24, splits=4), 25: _narrow(32, splits=4),
            33: _narrow(56, splits=4), 57: _narrow(72, splits=4), 73: _narrow(128, splits=4),
            129: _narrow(176, splits=4), 177: _narrow(104, splits=2), 209: _narrow(128, splits=2),
            257: _narrow(176, 128, splits=4), 353: BOTH_HALVES, 449: _narrow(256, 128, splits=4),
            577: LONG, 769: LARGE, 1537: BOTH_192, 3001: DEEP_ALONE,
        },
    },
    "head": {
        0: {0: FEW_HEADS, 33: HEAD, 1537: WIDE_192},
        1024: {
            0: FEW_HEADS, 2: _narrow(16, splits=2, teams=2), 17: _narrow(24, splits=2, teams=2),
            25: _narrow(32, splits=2), 33: _narrow(64, splits=2), 65: _narrow(72, splits=2),
            73: _narrow(128), 129: _narrow(176, splits=2), 177: _narrow(208, splits=2),
            209: _narrow(128), 257: _narrow(176), 353: _narrow(208, 128, splits=2),
            417: _narrow(128, 128), 513: _narrow(144, 128), 577: _narrow(208, 128),
            833: _narrow(256, 128), 1025: _narrow(128, 192), 1537: WIDE_192,
        },
        1280: {
            0: FEW_HEADS, 2: _narrow(16, splits=2, teams=2), 17: _narrow(24, splits=2, teams=2),
            25: _narrow(32, splits=2), 33: _narrow(64, splits=2), 65: _narrow(72, splits=2),
            73: _narrow(128), 129: _narrow(176, splits=2), 177: _narrow(208, splits=2),
            209: _narrow(128), 257: _narrow(176, 128, splits=2), 353: _narrow(176, 128),
            529: _narrow(208, 128), 625: _narrow(176, 128), 705: _narrow(256, 128),
            1025: _narrow(176, 128), 1537: WIDE_192,
        },
    },
    # of Hi-MAR's denoisers, and of its passes, which have no fewer than 64 rows
    "ada": {0: {0: _few(64), 17: _some(64), 65: LONG, 129: WIDE_192}},
    "silu": {0: {0: _few(32, num_stages=6), 17: _some(32), 300: SQUARE}},
    "gelu_erf": {0: {0: SQUARE, 300: LONG, 1025: TWO, 3001: WIDE_192}},
}  # fmt: skip
"""By layer, width of the model from which on, and number of rows from which on."""

NORM_BLOCKS = {0: 1024, 1025: 2048, 2049: 4096}
"""Values of a row that a program holds, by width from which on."""

ATTENTION_TILES = {
    0: AttentionTile(queries=16, keys=16, num_warps=2, num_stages=1),
    17: AttentionTile(queries=16, keys=64, is_whole=True),
    65: AttentionTile(queries=32, keys=128, is_whole=True),
    129: AttentionTile(queries=64, keys=64),
}
"""By number of tokens from which on; of unit-length queries and keys."""

PLAIN_ATTENTION_TILES = {
    0: AttentionTile(queries=16, keys=64, is_whole=True),
    65: AttentionTile(queries=32, keys=128, is_whole=True),
    129: AttentionTile(queries=64, keys=256, is_whole=True),
    257: AttentionTile(queries=64, keys=64),
}

_ONE = WideAttentionTile(warpgroups=1, num_stages=1)
_TWO = WideAttentionTile(warpgroups=2, num_stages=4)
WIDE_ATTENTION_TILES = {17: _ONE, 65: _TWO, 129: _ONE, 193: _TWO, 513: _ONE, 577: _TWO}
"""The same of both, where there are at least MANY_PROGRAMS; 169 tokens fill three blocks of 64, 576
nine."""

MANY_PROGRAMS = 256  # two for most multiprocessors

ROW_BLOCK = 1024
"""Values of a row that a program of the kernels around Hi-MAR's passes holds."""

EMBED_TILE = (16, 64)  # rows and columns
ACTIVATE_BLOCK = 1024
NOISE_DEPTH = 256  # values of a row in one step of the product
NOISE_BLOCKS = {"dit": {0: 512, 513: 1024}, "mlp": {0: 1024, 1025: 2048}}
"""Values of a row that a program of `noise_kernel` holds, by denoiser and width from which on."""


def choose_tile(layer: Layer, width: int, rows: int) -> AnyTile:
    """The tile of a layer of a model of this width."""
    by_width = TILES[layer]
    by_rows = by_width[max(start for start in by_width if start <= width)]
    return by_rows[max(start for start in by_rows if start <= rows)]
