"""Compiles the transformer's kernels ahead of time, without a GPU, to one fatbinary and its table.

`transformer.json` beside `transformer.fatbin` says, by architecture and kernel, how it is launched;
its parameters are passed in order, `pointer` as an address. Where `overlaps` is true, the launch
has the attribute of programmatic stream serialization. There are kernels for the GPU that their
tiles were measured on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plugins_trt.ahead_of_time.fatbin import Kernels, build_fatbin, find_fatbinary, parse_args
from plugins_trt.ahead_of_time.lowering import SCRATCH_PARAMETERS, Unit, run_time_parameters
from plugins_trt.transformer.tiles import (
    ATTENTION_TILES,
    LAYERS,
    PROGRAMS,
    ROW_BLOCK,
    TILES,
    Layer,
    Tile,
)

FATBIN_FILE, TABLE_FILE = "transformer.fatbin", "transformer.json"
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
    name = f"{kind}_{tile.rows}x{tile.columns}x{tile.depth}_{tile.splits}"
    types = HEAD_PARAMETERS if is_head else PARAMETERS
    function = "wide" if tile.is_wide else "linear"
    return _unit(function, name, constants, tile.num_warps, tile.num_stages, types)


def units() -> dict[Unit, dict[str, list[int]]]:
    """All units: the parts of a pass that each computes, and from how many rows or tokens on."""
    found: dict[Unit, dict[str, list[int]]] = {}
    for part, unit, size in _uses():
        found.setdefault(unit, {}).setdefault(part, []).append(size)
    return found


def _uses() -> Iterator[tuple[str, Unit, int]]:
    for layer in LAYERS:
        for rows, tile in TILES[layer].items():
            yield layer, linear_unit(layer, tile), rows
    for has_low, part in enumerate(("norm", "head_norm")):
        constants = {"HAS_LOW": has_low, "BLOCK": ROW_BLOCK}
        yield part, _unit("normalize", part, constants), 0
    for tokens, tile in ATTENTION_TILES.items():
        name = f"{tile.queries}x{tile.keys}"
        unit = _unit("attention", name, tile.constants, tile.num_warps, tile.num_stages)
        yield "attention", unit, tokens


def table(kernels: Kernels) -> dict[str, dict[str, Any]]:
    """By architecture and name of the kernel: how it is launched."""
    found: dict[str, dict[str, Any]] = {}
    for (arch, unit), kernel in kernels.items():
        found.setdefault(str(arch), {})[unit.name] = {
            "function": unit.function.removesuffix("_kernel"),
            "uses": units()[unit],
            "constants": dict(unit.constants),
            "programs": PROGRAMS,
            "overlaps": True,
            "threads": kernel.threads,
            "shared_bytes": kernel.shared_bytes,
            "scratch_bytes": kernel.scratch_bytes,
            "parameters": {
                **{
                    name: "pointer" if kind.startswith("*") else kind
                    for name, kind in unit.parameters
                },
                **dict.fromkeys(SCRATCH_PARAMETERS, "pointer"),
            },
        }
    return found


def build(arches: Sequence[int], out: Path, *, fatbinary: str, jobs: int) -> None:
    """Writes the fatbinary and its table to a folder; arguments as of `build_fatbin`.

    Without ARCHITECTURE among them, both are empty.
    """
    kernels: Kernels = {}
    if ARCHITECTURE in arches:
        kernels = build_fatbin(
            tuple(units()), [ARCHITECTURE], out / FATBIN_FILE, fatbinary=fatbinary, jobs=jobs
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / FATBIN_FILE).write_bytes(b"")
    text = json.dumps(table(kernels), indent=1)
    (out / TABLE_FILE).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    args = parse_args("plugins_trt.transformer.aot", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(args.arch, args.out, fatbinary=args.fatbinary or find_fatbinary(), jobs=args.jobs)


if __name__ == "__main__":
    main()
