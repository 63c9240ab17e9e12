"""Compiles the kernels ahead of time, without a GPU, to one fatbinary and its table.

`glue.json` beside `glue.fatbin` says, by architecture and kernel, how it is launched; its
parameters are passed in order, `pointer` as an address. There are kernels where there are those of
the transformer, which they serve, and for maps of the published tokenizer's 32 channels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins_trt.ahead_of_time.fatbin import Kernels, build_fatbin, find_fatbinary, parse_args
from plugins_trt.ahead_of_time.lowering import SCRATCH_PARAMETERS, Unit, run_time_parameters
from plugins_trt.glue.tiles import (
    COLUMNS_BLOCK,
    EMBED_TILE,
    MODULATION_ROWS,
    MODULATION_TILE,
    PIXELS_BLOCK,
    WINDOWS,
)

FATBIN_FILE, TABLE_FILE = "glue.fatbin", "glue.json"
MODULE = "plugins_trt.glue.kernel"
ARCHITECTURE = 90
CHANNELS = 32  # of a map

ALIGNMENT = 16  # of pointers, in bytes, and of widths, in values
PARAMETERS = {
    **dict.fromkeys(("class_emb", "cond", "act", "biases", "shared", "own", "pos"), "*fp16"),
    **dict.fromkeys(("word_embed", "mask_embed", "weights", "out"), "*fp16"),
    **dict.fromkeys(("x", "h", "codebook", "shares", "bias", "f_hat", "planes"), "*fp32"),
    **dict.fromkeys(("labels", "positions", "tokens", "taps"), "*i32"),
    "token_mask": "*i1",
    **dict.fromkeys(("rows", "length", "depth", "width", "layer_stride"), "i32"),
    **dict.fromkeys(("side", "pn", "reduced"), "i32"),
}
QUANTIZER = {**PARAMETERS, "weights": "*fp32", "out": "*fp32"}
ALIGNED = ("width", "depth", "layer_stride")


def _unit(function: str, name: str = "", num_warps: int = 4, **constants: int) -> Unit:
    types = QUANTIZER if function in ("enlarge", "phi", "reduce") else PARAMETERS
    parameters = run_time_parameters(MODULE, f"{function}_kernel", types)
    aligned = [p for p, kind in parameters if kind.startswith("*") or p in ALIGNED]
    return Unit(
        name=f"hmar_{function}{name}",
        module=MODULE,
        function=f"{function}_kernel",
        parameters=parameters,
        constants=tuple(constants.items()),
        alignments=tuple((p, ALIGNMENT) for p in aligned),
        num_warps=num_warps,
    )


def units() -> tuple[Unit, ...]:
    """All units."""
    columns, pixels = {"BLOCK": COLUMNS_BLOCK}, {"CHANNELS": CHANNELS, "BLOCK": PIXELS_BLOCK}
    return (
        _unit("class", **columns),
        *(
            _unit("modulation", f"_{rows}", BLOCK_M=rows, **MODULATION_TILE)
            for rows in MODULATION_ROWS
        ),
        _unit("shared_modulation", **columns),
        _unit("first", **columns),
        *(
            _unit("embed", name, HAS_MASK=has_mask, CHANNELS=CHANNELS, **EMBED_TILE)
            for has_mask, name in enumerate(("", "_masked"))
        ),
        _unit("enlarge", **pixels),
        *(_unit("phi", name, ADDS=adds, **pixels) for adds, name in enumerate(("", "_adding"))),
        *(_unit("reduce", f"_{size}", CHANNELS=CHANNELS, WINDOW=size) for size in WINDOWS),
    )


def table(kernels: Kernels) -> dict[str, dict[str, Any]]:
    """By architecture and name of the kernel: how it is launched."""
    found: dict[str, dict[str, Any]] = {}
    for (arch, unit), kernel in kernels.items():
        found.setdefault(str(arch), {})[unit.name] = {
            "function": unit.function.removesuffix("_kernel"),
            "constants": dict(unit.constants),
            "threads": kernel.threads,
            "shared_bytes": kernel.shared_bytes,
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
            units(), [ARCHITECTURE], out / FATBIN_FILE, fatbinary=fatbinary, jobs=jobs
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / FATBIN_FILE).write_bytes(b"")
    text = json.dumps(table(kernels), indent=1)
    (out / TABLE_FILE).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    args = parse_args("plugins_trt.glue.aot", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(args.arch, args.out, fatbinary=args.fatbinary or find_fatbinary(), jobs=args.jobs)


if __name__ == "__main__":
    main()
