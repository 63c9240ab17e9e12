"""Compiles the decoder's kernels ahead of time, without a GPU, to one fatbinary and its table.

There are kernels for the GPU that their tiles were measured on, and for the sizes of the published
tokenizer, the demo's, and Hi-MAR's autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from plugins_trt.ahead_of_time import cuda, part
from plugins_trt.ahead_of_time.cuda import CudaUnit, TensorMap
from plugins_trt.ahead_of_time.fatbin import AnyUnit
from plugins_trt.ahead_of_time.lowering import TENSOR_MAP, Unit, run_time_parameters
from plugins_trt.decoder.tiles import (
    ATTENTION_BLOCKS,
    CLUSTER,
    CONVOLUTIONS,
    NORMALIZE_BLOCK,
    PIXELS_BLOCK,
    PROGRAMS,
    STATISTICS_TILES,
    Convolution,
    Tile,
    Tiles,
    WideTile,
)

MODULE = "plugins_trt.decoder.kernel"
ARCHITECTURE = 90  # that the tiles were measured on
GROUPS = 32  # of every group norm

WIDE_PARAMETERS = (
    "x", "weights", "bias", "residual", "out", "sums", "batch", "height", "width", "x_rest",
    "weights_rest",
)  # fmt: skip
ALIGNMENT = 16  # of pointers, in bytes
PARAMETERS = {
    **dict.fromkeys(("x", "weights", "residual", "out", "qkv"), "*fp16"),
    **dict.fromkeys(("bias", "gain", "sums", "scale_shift", "planes", "image"), "*fp32"),
    "tokens": "*fp32",
    **dict.fromkeys(("batch", "height", "width", "num_tiles", "num_pixels", "num_values"), "i32"),
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


def convolution_unit(conv: Convolution, tile: Tile | WideTile) -> AnyUnit:
    """One convolution in one division."""
    if isinstance(tile, WideTile):
        return _wide_unit(conv, tile)
    constants = {**_constants(conv), **tile.constants}
    name = f"{_kind(conv)}_{tile.height}x{tile.width}x{tile.channels + tile.rest}"
    return _unit(name, "conv", constants, tile.num_warps, tile.num_stages)


def _wide_unit(conv: Convolution, tile: WideTile) -> CudaUnit:
    constants = {**_constants(conv), **tile.constants}
    channels, side = conv.channels[0], 2 if conv.upsamples else conv.side
    width, taps, phases = constants["TILE_W"], side * side, 4 if conv.upsamples else 1
    maps = {}
    for step, rest in ((cuda.DEPTH, ""), (channels % cuda.DEPTH or cuda.DEPTH, "_rest")):
        maps[f"x{rest}"] = TensorMap(
            sizes=((channels, None), (1, "width"), (1, "height"), (1, "batch")),
            box=(step, width, tile.height, 1),
        )
        maps[f"weights{rest}"] = TensorMap(
            sizes=((channels, None), (taps, None), (phases * conv.channels[1], None)),
            box=(step, 1, tile.channels // CLUSTER),
        )
    types = {**PARAMETERS, **dict.fromkeys(maps, TENSOR_MAP)}
    stage = (tile.height * constants["TILE_W"] + tile.channels) * 2 * cuda.DEPTH
    sums = 2 * 4 * 2 * tile.channels * 4  # of the warps of two warpgroups, float32
    return CudaUnit(
        name=f"hmar_wide_conv_{_kind(conv)}_{tile.height}x16x{tile.channels}",
        source="decoder/csrc/conv.cu",
        function="wide_conv_kernel",
        parameters=tuple((name, types[name]) for name in WIDE_PARAMETERS),
        constants=tuple(constants.items()),
        tensor_maps=tuple(maps.items()),
        columns=tile.channels,
        shared_bytes=cuda.BARRIERS_BYTES + tile.num_stages * stage + sums,
    )


def _constants(conv: Convolution) -> dict[str, int]:
    channels_in, channels_out = conv.channels
    return {
        "CIN": channels_in,
        "COUT": channels_out,
        "SIDE": conv.side,
        "UPSAMPLES": int(conv.upsamples),
        "HAS_RESIDUAL": int(conv.epilogue == "residual"),
        "HAS_SUMS": int(conv.epilogue != "plain"),
    }


def _kind(conv: Convolution) -> str:
    channels_in, channels_out = conv.channels
    kind = f"{'up' if conv.upsamples else ''}{conv.side}x{conv.side}_{conv.epilogue}"
    return f"{kind}_{channels_in}_{channels_out}"


def units(
    convolutions: Mapping[Convolution, Tiles] = CONVOLUTIONS,
) -> dict[AnyUnit, dict[str, int]]:
    """All units.

    The table says from how many input pixels on each is used, and how many programs it has, if it
    is persistent.
    """
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
    return {unit: {"from_pixels": start, "programs": PROGRAMS} for unit, start in starts.items()}


if __name__ == "__main__":
    part.main("decoder", units(), __doc__, only=ARCHITECTURE)
