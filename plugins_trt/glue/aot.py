"""Compiles the kernels ahead of time, without a GPU, to one fatbinary and its table.

There are kernels where there are those of the transformer, which they serve, and for maps of the
published tokenizer's 32 channels.
"""

from __future__ import annotations

from plugins_trt.ahead_of_time import part
from plugins_trt.ahead_of_time.lowering import Unit, run_time_parameters
from plugins_trt.glue.tiles import (
    COLUMNS_BLOCK,
    EMBED_TILE,
    MODULATION_ROWS,
    MODULATION_TILE,
    PIXELS_BLOCK,
    WINDOWS,
)

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


def units() -> dict[Unit, dict[str, int]]:
    """All units; their names and constants say all there is to know."""
    columns, pixels = {"BLOCK": COLUMNS_BLOCK}, {"CHANNELS": CHANNELS, "BLOCK": PIXELS_BLOCK}
    found = (
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
    return {unit: {} for unit in found}


if __name__ == "__main__":
    part.main("glue", units(), __doc__, only=ARCHITECTURE)
