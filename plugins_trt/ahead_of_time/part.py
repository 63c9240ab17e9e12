"""A part of the plugin library whose kernels the runtime launches itself.

`NAME.fatbin` holds the kernels; `NAME.json` beside it says, by architecture and kernel, how each is
launched. Its parameters are passed in order, `pointer` as an address, and `tensor_map` as the map
that `tensor_maps` describes of the array at an address.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plugins_trt.ahead_of_time.cuda import CudaUnit
from plugins_trt.ahead_of_time.fatbin import (
    AnyUnit,
    Kernels,
    build_fatbin,
    find_fatbinary,
    parse_args,
)
from plugins_trt.ahead_of_time.lowering import SCRATCH_PARAMETERS

Units = Mapping[AnyUnit, Mapping[str, Any]]
"""All units of a part, and what its planner needs to know of each."""


def table(units: Units, kernels: Kernels) -> dict[str, dict[str, Any]]:
    """By architecture and name of the kernel: how it is launched."""
    found: dict[str, dict[str, Any]] = {}
    for (arch, unit), kernel in kernels.items():
        found.setdefault(str(arch), {})[unit.name] = {
            "function": unit.function.removesuffix("_kernel"),
            "constants": dict(unit.constants),
            **units[unit],
            "threads": kernel.threads,
            "shared_bytes": kernel.shared_bytes,
            **parameters(unit),
        }
    return found


def parameters(unit: AnyUnit) -> dict[str, dict[str, Any]]:
    """Kinds of a unit's parameters, in order, and its tensor maps, if it has some."""
    kinds = {n: "pointer" if kind.startswith("*") else kind for n, kind in unit.parameters}
    if isinstance(unit, CudaUnit):
        maps = {name: asdict(tensor_map) for name, tensor_map in unit.tensor_maps}
        return {"parameters": kinds, "tensor_maps": maps}
    return {"parameters": kinds | dict.fromkeys(SCRATCH_PARAMETERS, "pointer")}


def build(
    name: str,
    units: Units,
    arches: Sequence[int],
    out: Path,
    *,
    fatbinary: str,
    jobs: int,
) -> None:
    """Writes the fatbinary and the table of a part to a folder; arguments as of `build_fatbin`.

    Without architectures, both are empty.
    """
    fatbin = out / f"{name}.fatbin"
    kernels: Kernels = {}
    if arches:
        kernels = build_fatbin(tuple(units), arches, fatbin, fatbinary=fatbinary, jobs=jobs)
    else:
        out.mkdir(parents=True, exist_ok=True)
        fatbin.write_bytes(b"")
    text = json.dumps(table(units, kernels), indent=1)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main(name: str, units: Units, description: str | None, only: int | None = None) -> None:
    """The command line of a part; `only` is the one architecture that it has kernels for."""
    args = parse_args(f"plugins_trt.{name}.aot", description)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arches = [arch for arch in args.arch if only in (None, arch)]
    fatbinary = args.fatbinary or find_fatbinary()
    build(name, units, arches, args.out, fatbinary=fatbinary, jobs=args.jobs)
