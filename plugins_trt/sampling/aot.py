"""Compiles the sampling kernels ahead of time, without a GPU, to one fatbinary and its table.

`sampling.json` beside `sampling.fatbin` says, by architecture and kernel, how it is launched; its
parameters are passed in order, `pointer` as an address.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins_trt.ahead_of_time.fatbin import Kernels, build_fatbin, find_fatbinary, parse_args
from plugins_trt.ahead_of_time.lowering import SCRATCH_PARAMETERS, Unit, run_time_parameters
from plugins_trt.sampling.diffusion import COUNTS, WEIGHTS

FATBIN_FILE, TABLE_FILE = "sampling.fatbin", "sampling.json"
MODULE, DIFFUSION = "plugins_trt.sampling.kernel", "plugins_trt.sampling.diffusion"

# Items that one program holds, and its warps: the vocabulary; the positions of a scale, with how
# many candidates are compared at once; pixels; blocks of random numbers.
DRAW_WARPS = {512: 4, 2048: 4, 4096: 8, 8192: 8}
SELECT_SIZES = {64: (64, 4), 256: (32, 4), 1024: (16, 8), 4096: (8, 32)}
PIXELS_BLOCK = 1024
DIFFUSION_BLOCK = 128

PARAMETERS = {
    **dict.fromkeys(("logits", "confidences", "image"), "*fp32"),
    **dict.fromkeys(("tokens", "candidates", "selected"), "*i32"),
    "token_mask": "*i1",
    "settings": "*fp64",
    **dict.fromkeys(("seed", "images"), "*i64"),
    "pixels": "*u8",
    **dict.fromkeys(
        ("batch", "length", "vocab", "scale_idx", "num_scales", "pass_idx", "is_guided"), "i32"
    ),
    **dict.fromkeys(("num_candidates", "count", "is_first", "num_pixels"), "i32"),
}
DIFFUSION_PARAMETERS = {
    **dict.fromkeys(("state", "first", "noise", "variance", "held_tokens", "temperature"), "*fp32"),
    **dict.fromkeys(("timestep", "positions", "counter"), "*i32"),
    "held": "*i1",
    **dict.fromkeys(("images", "seed"), "*i64"),
    **dict.fromkeys(COUNTS, "i32"),
    **dict.fromkeys(WEIGHTS, "fp32"),
}


def _unit(name: str, block: int, num_warps: int, module: str = MODULE, **constants: int) -> Unit:
    function = f"{name}_kernel"
    types = PARAMETERS if module == MODULE else DIFFUSION_PARAMETERS
    return Unit(
        name=f"hmar_{name}_{block}",
        module=module,
        function=function,
        parameters=run_time_parameters(module, function, types),
        constants=tuple(constants.items()),
        num_warps=num_warps,
        fuses_products=False,  # as NumPy rounds
    )


def blocks() -> dict[Unit, tuple[str, int]]:
    """All units, with the function that each computes and the items of one program."""
    return {
        **{
            _unit("draw", block, warps, BLOCK_V=block): ("draw", block)
            for block, warps in DRAW_WARPS.items()
        },
        **{
            _unit("select", block, warps, BLOCK_L=block, BLOCK_C=compared): ("select", block)
            for block, (compared, warps) in SELECT_SIZES.items()
        },
        _unit("to_uint8", PIXELS_BLOCK, 4, BLOCK=PIXELS_BLOCK): ("to_uint8", PIXELS_BLOCK),
        **{
            _unit(name, DIFFUSION_BLOCK, 4, DIFFUSION, BLOCK=DIFFUSION_BLOCK): (
                name,
                DIFFUSION_BLOCK,
            )
            for name in ("start", "reverse")
        },
    }


def all_units() -> tuple[Unit, ...]:
    """Everything that the fatbinary holds, for one architecture."""
    return tuple(blocks())


def table(arches: Sequence[int], kernels: Kernels) -> dict[str, dict[str, Any]]:
    """By architecture and name of the kernel: how it is launched."""
    return {
        str(arch): {
            unit.name: {
                "function": function,
                "block": block,
                "threads": kernels[arch, unit].threads,
                "shared_bytes": kernels[arch, unit].shared_bytes,
                "parameters": {
                    **{
                        name: "pointer" if kind.startswith("*") else kind
                        for name, kind in unit.parameters
                    },
                    **dict.fromkeys(SCRATCH_PARAMETERS, "pointer"),
                },
            }
            for unit, (function, block) in blocks().items()
        }
        for arch in arches
    }


def build(arches: Sequence[int], out: Path, *, fatbinary: str, jobs: int) -> None:
    """Writes the fatbinary and its table to a folder; arguments as of `build_fatbin`."""
    kernels = build_fatbin(all_units(), arches, out / FATBIN_FILE, fatbinary=fatbinary, jobs=jobs)
    text = json.dumps(table(arches, kernels), indent=1)
    (out / TABLE_FILE).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    args = parse_args("plugins_trt.sampling.aot", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(args.arch, args.out, fatbinary=args.fatbinary or find_fatbinary(), jobs=args.jobs)


if __name__ == "__main__":
    main()
