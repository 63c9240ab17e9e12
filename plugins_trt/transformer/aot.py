"""Compiles the transformer's kernels ahead of time, without a GPU, to one fatbinary and its table.

There are kernels for the GPU that their tiles were measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plugins_trt.ahead_of_time import part
from plugins_trt.ahead_of_time.lowering import Unit, run_time_parameters
from plugins_trt.transformer.tiles import (
    ATTENTION_TILES,
    LAYERS,
    NORM_BLOCKS,
    PROGRAMS,
    TILES,
    Layer,
    Tile,
)

MODULE = "plugins_trt.transformer.kernel"
ARCHITECTURE = 90  # that the tiles were measured on

EPILOGUES: dict[Layer, str] = {
    "qkv": "plain", "proj": "residual", "fc1": "gelu", "fc2": "residual", "head": "plain",
}  # fmt: skip
EPILOGUE_CODES = {"plain": 0, "gelu": 1, "residual": 2}  # in kernel.py

ALIGNMENT = 16  # of pointers, in bytes, and of widths and places, in values
PARAMETERS = {
    **dict.fromkeys(("x", "ada", "weights", "bias", "residual", "out", "qkv"), "*fp16"),
    **dict.fromkeys(("scale_mul", "partials"), "*fp32"),
    "arrivals": "*i32",
    **dict.fromkeys(("rows", "length", "depth", "width", "ada_stride"), "i32"),
    **dict.fromkeys(("scale_at", "shift_at", "gate_at"), "i32"),
    "eps": "fp32",
}
HEAD_PARAMETERS = {**PARAMETERS, "bias": "*fp32", "out": "*fp32"}
NOT_ALIGNED = ("rows", "length", "eps")


def _unit(
    function: str,
    name: str,
    constants: dict[str, int],
    num_warps: int = 4,
    num_stages: int | None = None,
    types: dict[str, str] = PARAMETERS,
) -> Unit:
    parameters = run_time_parameters(MODULE, f"{function}_kernel", types)
    return Unit(
        name=f"hmar_{function}_{name}",
        module=MODULE,
        function=f"{function}_kernel",
        parameters=parameters,
        constants=(*constants.items(), ("OVERLAPS", 1)),
        alignments=tuple((p, ALIGNMENT) for p, _ in parameters if p not in NOT_ALIGNED),
        num_warps=num_warps,
        num_stages=num_stages,
        may_use_scratch=function == "wide",
    )


def linear_unit(layer: Layer, tile: Tile) -> Unit:
    """One kind of linear layer in one division."""
    is_head, epilogue = layer == "head", EPILOGUES[layer]
    constants = {
        "EPILOGUE": EPILOGUE_CODES[epilogue],
        "HAS_LOW": int(is_head),
        **tile.constants,
    }
    kind = "head" if is_head else epilogue
    name = f"{kind}_{tile.rows}x{tile.columns}x{tile.depth}_{tile.splits}_{tile.num_stages}"
    types = HEAD_PARAMETERS if is_head else PARAMETERS
    function = "wide" if tile.is_wide else "linear"
    return _unit(function, name, constants, tile.num_warps, tile.num_stages, types)


def units() -> dict[Unit, dict[str, Any]]:
    """All units.

    The table says of each: the parts of a pass that it computes (`uses`, from which width of the
    model on, and from how many rows or tokens on), the number of its programs if it is persistent,
    and that its launch has the attribute of programmatic stream serialization.
    """
    found: dict[Unit, dict[str, list[tuple[int, int]]]] = {}
    for used_for, unit, width, size in _uses():
        found.setdefault(unit, {}).setdefault(used_for, []).append((width, size))
    return {
        unit: {"uses": uses, "programs": PROGRAMS, "overlaps": True} for unit, uses in found.items()
    }


def _uses() -> Iterator[tuple[str, Unit, int, int]]:
    for layer in LAYERS:
        for width, by_rows in TILES[layer].items():
            for rows, tile in by_rows.items():
                yield layer, linear_unit(layer, tile), width, rows
    for has_low, norm in enumerate(("norm", "head_norm")):
        for width, block in NORM_BLOCKS.items():
            constants = {"HAS_LOW": has_low, "BLOCK": block}
            yield norm, _unit("normalize", f"{norm}_{block}", constants, block // 256), width, 0
    for tokens, tile in ATTENTION_TILES.items():
        name = f"{tile.queries}x{tile.keys}"
        unit = _unit("attention", name, tile.constants, tile.num_warps, tile.num_stages)
        yield "attention", unit, 0, tokens


if __name__ == "__main__":
    part.main("transformer", units(), __doc__, only=ARCHITECTURE)
