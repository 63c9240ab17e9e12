"""How the pixels and channels of a convolution are divided among programs."""

from __future__ import annotations

from dataclasses import dataclass


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

    height: int
    width: int
    channels: int
    rest: int = 0
    depth: int = 32
    num_warps: int = 4
    num_stages: int = 4

    def count(self, height: int, width: int) -> int:
        """Tiles of one image, or of one phase of it."""
        return -(-height // self.height) * -(-width // self.width)

    def channel_blocks(self, channels: int) -> int:
        """Programs that share a tile's pixels, for so many output channels."""
        return -(-channels // (self.channels + self.rest))
