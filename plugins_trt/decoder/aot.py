"""Compiles the decoder's kernels ahead of time, without a GPU, to one fatbinary and its table.

There are kernels for the GPU that their tiles were measured on, and for the sizes of the published
tokenizer, the demo's, and Hi-MAR's autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from plugins_trt.ahead_of_time import part
from plugins_trt.ahead_of_time.lowering import Unit, run_time_parameters
from plugins_trt.decoder.tiles import (
    ATTENTION_BLOCKS,
    CONVOLUTIONS,
    NORMALIZE_BLOCK,
    PIXELS_BLOCK,
    STATISTICS_TILES,
    Convolution,
    Tile,
    Tiles,
)

MODULE = "plugins_trt.decoder.kernel"
ARCHITECTURE = 90  # that the tiles were measured on
GROUPS = 32  # of every group norm

ALIGNMENT = 16  # of pointers, in bytes
PARAMETERS = {
    **dict.fromkeys(("x", "weights", "residual", "out", "qkv"), "*fp16"),
    **dict.fromkeys(("bias", "gain", "sums", "scale_shift", "planes", "image"), "*fp32"),
    "tokens": "*fp32",
    **dict.fromkeys(("height", "width", "num_tiles", "num_pixels", "num_values"), "i32"),
    **dict.fromkeys(("eps", "sm_scale", "factor"), "fp32"),
}


def _unit(
    name: str,
    function: str,
    constants: dict[str, int],
    num_warps: int = 4,
    num_stages: int | None = None,
) -> Unit:
    parameters = run_time_parameters(MODULE, f"{function}_kernel", PARAMETERS)
    # rows of values are a multiple of GROUPS, too
    aligned = [p for p, kind in parameters if kind.startswith("*") or p == "num_values"]
    return Unit(
        name=f"hmar_{function}_{name}",
        module=MODULE,
        function=f"{function}_kernel",
        parameters=parameters,
        constants=tuple(constants.items()),
        alignments=tuple((p, ALIGNMENT) for p in aligned),
        num_warps=num_warps,
        num_stages=num_stages,
    )


def convolution_unit(conv: Convolution, tile: Tile) -> Unit:
    """One convolution in one division."""
    channels_in, channels_out = conv.channels
    constants = {
        "CIN": channels_in,
        "COUT": channels_out,
        "SIDE": conv.side,
        "UPSAMPLES": int(conv.upsamples),
        "HAS_RESIDUAL": int(conv.epilogue == "residual"),
        "HAS_SUMS": int(conv.epilogue != "plain"),
        **tile.constants,
    }
    kind = f"{'up' if conv.upsamples else ''}{conv.side}x{conv.side}_{conv.epilogue}"
    sizes = f"{channels_in}_{channels_out}_{tile.height}x{tile.width}x{tile.channels + tile.rest}"
    return _unit(f"{kind}_{sizes}", "conv", constants, tile.num_warps, tile.num_stages)


def units(
    convolutions: Mapping[Convolution, Tiles] = CONVOLUTIONS,
) -> dict[Unit, dict[str, int]]:
    """All units, with the number of input pixels from which on each is used."""
    found = {
        convolution_unit(conv, tile): pixels
        for conv, tiles in convolutions.items()
        for pixels, tile in tiles.items()
    }
    others = [
        _unit(name, "to_image", {"CLAMPS": clamps, "BLOCK": PIXELS_BLOCK})
        for clamps, name in enumerate(("any", "clamped"))
    ]
    others.append(_unit("scaled", "from_tokens", {"BLOCK": NORMALIZE_BLOCK}))
    for conv in convolutions:
        channels_in, channels = conv.channels
        if conv.epilogue != "plain":
            norm = {"CHANNELS": channels, "GROUPS": GROUPS, "BLOCK_T": STATISTICS_TILES}
            others.append(_unit(f"{channels}", "statistics", norm))
            values = {"CHANNELS": channels, "HAS_SILU": 1, "BLOCK": NORMALIZE_BLOCK}
            others.append(_unit(f"{channels}_silu", "normalize", values))
        elif channels == 3 * channels_in:
            values = {"CHANNELS": channels_in, "HAS_SILU": 0, "BLOCK": NORMALIZE_BLOCK}
            others.append(_unit(f"{channels_in}", "normalize", values))
            attention = {"CHANNELS": channels_in, **ATTENTION_BLOCKS}
            others.append(_unit(f"{channels_in}", "attention", attention))
        elif channels == channels_in and conv.side == 3:  # the first layer, of maps
            padded = 1 << (channels - 1).bit_length()
            values = {"CHANNELS": channels, "PADDED": padded, "BLOCK": PIXELS_BLOCK}
            others.append(_unit(f"{channels}", "from_planes", values))
    starts = found | dict.fromkeys(others, 0)
    return {unit: {"from_pixels": pixels} for unit, pixels in starts.items()}


if __name__ == "__main__":
    part.main("decoder", units(), __doc__, only=ARCHITECTURE)
