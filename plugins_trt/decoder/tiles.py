"""How the work of the decoder's kernels is divided among programs, as measured on an H100."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PROGRAMS = 132  # of a persistent kernel: multiprocessors of an H100
CLUSTER = 2  # of these, that share weights

STATISTICS_TILES = 128  # read at once
NORMALIZE_BLOCK = 2048  # values of one program
PIXELS_BLOCK = 128  # pixels of one program, where the layout changes
ATTENTION_BLOCKS = {"BLOCK_Q": 16, "BLOCK_L": 64, "BLOCK_C": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What one program of `conv_kernel` computes, and how.

    Attributes:
        height, width: in pixels; their product is a power of two, at least 16.
        channels: of the output, BLOCK_N.
        rest: further channels of the output, REST_N.
        depth: input channels of one step, BLOCK_K.
        num_warps: of the program.
        num_stages: steps whose loads are in flight.
    """

    height: int = 8
    width: int = 16
    channels: int
    rest: int = 0
    depth: int = 64
    num_warps: int = 4
    num_stages: int = 4

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters."""
        return {
            "TILE_H": self.height,
            "TILE_W": self.width,
            "BLOCK_N": self.channels,
            "REST_N": self.rest,
            "BLOCK_K": self.depth,
        }

    def count(self, height: int, width: int) -> int:
        """Tiles of one image, or of one phase of it."""
        return -(-height // self.height) * -(-width // self.width)

    def channel_blocks(self, channels: int) -> int:
        """Programs that share a tile's pixels, for so many output channels."""
        return -(-channels // (self.channels + self.rest))


@dataclass(frozen=True, slots=True, kw_only=True)
class WideTile:
    """What one of two neighbouring programs computes of a convolution at a time, by
    `csrc/conv.cu`; PROGRAMS programs take turns at all tiles.

    Attributes:
        height: in pixels, 16 of which are a row; a multiple of 4.
        channels: of the output, BLOCK_N; a multiple of 32.
        num_stages: steps of 64 input channels whose loads are in flight.
    """

    height: int = 8
    channels: int
    num_stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time parameters, and what tells planners of its other sizes."""
        return {
            "TILE_H": self.height,
            "TILE_W": 16,
            "BLOCK_N": self.channels,
            "REST_N": 0,
            "CLUSTER": CLUSTER,
            "STAGES": self.num_stages,
        }


Epilogue = Literal["plain", "sums", "residual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution of a decoder, by channels.

    Attributes:
        channels: of input and output.
        side: of the kernel, in pixels.
        upsamples: whether it doubles the sides before.
        epilogue: "sums" are left for the next group norm, and so they are with a "residual", which
            is added before.
    """

    channels: tuple[int, int]
    side: Literal[1, 3] = 3
    upsamples: bool = False
    epilogue: Epilogue = "sums"


NARROW = Tile(height=8, width=8, channels=32, num_stages=6)
SMALL = Tile(height=8, width=8, channels=64, num_stages=5)
MIDDLE = Tile(channels=64)
LARGE = Tile(channels=128, num_warps=8, num_stages=3)
LARGE_160 = Tile(channels=128, rest=32, num_warps=8)
TO_PIXELS = Tile(channels=16, depth=32)
WIDE_128 = WideTile(channels=128, num_stages=6)
HALF_160 = WideTile(height=4, channels=160, num_stages=7)
WIDE_160 = WideTile(channels=160, num_stages=5)
FROM_LATENT = Tile(height=8, width=8, channels=32, depth=32)

Tiles = Mapping[int, Tile | WideTile]
"""By the number of input pixels, of all images, from which on it is used."""


def _blocks(width: int, tiles: Tiles) -> dict[Convolution, Tiles]:
    """Both convolutions of residual blocks."""
    return {
        Convolution(channels=(width, width)): tiles,
        Convolution(channels=(width, width), epilogue="residual"): tiles,
    }


def _attention(width: int, qkv: Tiles, out: Tiles) -> dict[Convolution, Tiles]:
    return {
        Convolution(channels=(width, 3 * width), side=1, epilogue="plain"): qkv,
        Convolution(channels=(width, width), side=1, epilogue="residual"): out,
    }


def _narrowing(wide: int, narrow: int, tiles: Tiles, beside: Tiles) -> dict[Convolution, Tiles]:
    """The first convolution of a level, and the one beside it."""
    return {
        Convolution(channels=(wide, narrow)): tiles,
        Convolution(channels=(wide, narrow), side=1, epilogue="plain"): beside,
    }


PUBLISHED: Mapping[Convolution, Tiles] = {
    Convolution(channels=(32, 32), epilogue="plain"): {0: FROM_LATENT},
    Convolution(channels=(32, 640)): {0: FROM_LATENT},
    **_blocks(640, {0: NARROW, 1024: HALF_160, 8192: WIDE_160}),
    **_attention(640, {0: SMALL, 2048: LARGE, 8192: WIDE_160}, {0: NARROW, 1024: MIDDLE}),
    Convolution(channels=(640, 640), upsamples=True): {0: MIDDLE, 2048: WIDE_160},
    **_narrowing(
        640, 320, {0: SMALL, 4096: WIDE_160}, {0: SMALL, 4096: LARGE_160, 16384: WIDE_160}
    ),
    **_blocks(320, {0: SMALL, 4096: HALF_160, 8192: WIDE_160}),
    Convolution(channels=(320, 320), upsamples=True): {0: HALF_160, 4096: WIDE_160},
    **_narrowing(320, 160, {0: WIDE_160}, {0: LARGE_160, 65536: WIDE_160}),
    **_blocks(160, {0: WIDE_160}),
    Convolution(channels=(160, 160), upsamples=True): {0: WIDE_160},
    Convolution(channels=(160, 3), epilogue="plain"): {0: TO_PIXELS},
}
# Hi-MAR's autoencoder and the demo's tokenizer, which share widths; in tiles that were measured for
# the published tokenizer
OTHERS: Mapping[Convolution, Tiles] = {
    Convolution(channels=(16, 16), side=1, epilogue="plain"): {0: FROM_LATENT},
    Convolution(channels=(16, 512)): {0: FROM_LATENT},
    **_blocks(512, {0: NARROW, 1024: MIDDLE, 8192: LARGE, 16384: WIDE_128}),
    **_attention(512, {0: SMALL, 2048: LARGE}, {0: NARROW, 1024: MIDDLE}),
    Convolution(channels=(512, 512), upsamples=True): {0: MIDDLE, 2048: LARGE, 4096: WIDE_128},
    **_narrowing(
        512, 256, {0: SMALL, 4096: LARGE, 16384: WIDE_128}, {0: SMALL, 4096: LARGE, 65536: WIDE_128}
    ),
    **_blocks(256, {0: SMALL, 4096: LARGE, 65536: WIDE_128}),
    Convolution(channels=(256, 256), upsamples=True): {0: MIDDLE, 2048: LARGE, 16384: WIDE_128},
    **_narrowing(256, 128, {0: LARGE, 65536: WIDE_128}, {0: LARGE}),
    Convolution(channels=(128, 3), epilogue="plain"): {0: TO_PIXELS},
    Convolution(channels=(32, 32), epilogue="plain"): {0: FROM_LATENT},
    Convolution(channels=(32, 128)): {0: FROM_LATENT},
    **_blocks(128, {0: SMALL, 4096: LARGE, 65536: WIDE_128}),
    **_attention(128, {0: SMALL}, {0: SMALL}),
    Convolution(channels=(128, 128), upsamples=True): {0: MIDDLE, 4096: LARGE},
    **_narrowing(128, 64, {0: MIDDLE}, {0: MIDDLE}),
    **_blocks(64, {0: MIDDLE}),
    Convolution(channels=(64, 64), upsamples=True): {0: MIDDLE},
    Convolution(channels=(64, 3), epilogue="plain"): {0: TO_PIXELS},
}
CONVOLUTIONS = {**PUBLISHED, **OTHERS}
