"""A stand-in for the plugin library: kernels of all parts, computed on the host's memory."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import pytest

from runtime.backends.kernel_library import Part
from runtime.backends.recordings import Library
from runtime.bundle import Bundle
from runtime.decoder_plan import plan_decoder, read_sizes
from runtime.launches import KernelTable
from tests import host_decoder, host_glue, host_transformer
from tests.host_device import HostDiffusionKernels, HostKernels

GPU = "sm90"
BATCHES = (1, 2, 3)  # that a bundle is run with
RANKS = {
    ("decoder", "conv"): 3, ("decoder", "wide_conv"): 1, ("decoder", "attention"): 3,
    ("glue", "modulation"): 3, ("glue", "shared_modulation"): 3,
    ("transformer", "attention"): 3, ("transformer", "wide_attention"): 3,
    ("transformer", "normalize"): 1, ("transformer", "wide"): 1,
}  # fmt: skip
"""Dimensions of the grids that stand-ins take, where not 2."""
SAMPLING_BLOCKS = {"draw": 4096, "select": 1024, "to_uint8": 1024, "start": 256, "reverse": 256}


class HostSamplingLaunches:
    """The sampling kernels of both families, launched as those of the library are."""

    def __init__(self, table: KernelTable) -> None:
        self.table, self._kernels, self._diffusion = table, HostKernels(), HostDiffusionKernels()

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        function, given = self.table[name]["function"], dict(arguments)
        if function == "select":
            given["batch"] = grid[0]
        if function == "to_uint8":
            given["batch"], given["side"] = grid[1], round(given.pop("num_pixels") ** 0.5)
        kernels = self._diffusion if function in ("start", "reverse") else self._kernels
        getattr(kernels, function)(**given)


class HostLibrary:
    """Kernels of all parts that a bundle may ask for, of Hi-MAR the sampling alone.

    Args:
        has_layers: whether there are kernels for graphs.

    Attributes:
        tables: by part, as the library describes them.
        parts: what computes them.
    """

    def __init__(self, bundle: Bundle, *, has_layers: bool = True) -> None:
        self.tables: dict[Part, dict[str, dict[str, Any]]] = {
            "sampling": {
                f"{function}{block}": {"function": function, "block": block}
                for function, block in SAMPLING_BLOCKS.items()
            }
        }
        if has_layers and bundle.manifest.family == "hmar":
            self.tables |= {
                "decoder": _decoder_table(bundle),
                "transformer": dict(host_transformer.host_table()),
                "glue": dict(host_glue.host_table(bundle.manifest.hmar.latent_channels)),
            }
        for part, table in self.tables.items():
            parameters = _parameters(part)
            for name, entry in table.items():
                described = {"threads": 128, "shared_bytes": 0, **parameters[entry["function"]]}
                table[name] = described | entry
        kernels: dict[Part, Any] = {
            "sampling": HostSamplingLaunches,
            "decoder": host_decoder.HostDecoderKernels,
            "transformer": host_transformer.HostTransformerKernels,
            "glue": host_glue.HostGlueKernels,
        }
        self.parts: dict[Part, Any] = {
            part: kernels[part](table) for part, table in self.tables.items()
        }

    def text(self, part: Part) -> str:
        """The table as the library holds it: by architecture."""
        return json.dumps({GPU.removeprefix("sm"): self.tables[part]})

    @property
    def library(self) -> Library:
        texts = {part: self.text(part).encode() for part in self.tables}
        return Library(
            tables=self.tables,
            digests={part: hashlib.sha256(text).hexdigest() for part, text in texts.items()},
        )

    def launch_all(
        self,
        part: Part,
        name: str,
        grid: tuple[int, int, int],
        stream: int,
        values: Sequence[int | float],
    ) -> None:
        """A launch with a value for every parameter, in order.

        Those that the kernel does not take must be 0, and further dimensions of the grid 1.
        """
        entry, kernels = self.tables[part][name], self.parts[part]
        rank = RANKS.get((part, entry["function"]), 2)
        assert set(grid[rank:]) <= {1}
        given = dict(zip(entry["parameters"], values, strict=True))
        if part != "sampling":
            method = getattr(kernels, f"_{entry['function']}")
            taken = set(inspect.signature(method).parameters)
            if "rest" in taken:  # which goes on to another method
                taken |= {name for name, value in given.items() if value}
        else:
            taken = set(given) - {"global_scratch", "profile_scratch"}
        assert not any(value for name, value in given.items() if name not in taken)
        kernels.launch(name, grid[:rank], stream, {n: v for n, v in given.items() if n in taken})


def _decoder_table(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """The kernels that the bundle's decoder asks for, of the many that there are."""
    sizes = read_sizes(bundle.manifest, bundle.manifest.graph("decode"))
    table = host_decoder.host_table(sizes)
    used = {step.kernel for batch in BATCHES for step in plan_decoder(sizes, batch, table).steps}
    return {name: dict(table[name]) for name in sorted(used)}


def _parameters(part: Part) -> dict[str, dict[str, Any]]:
    """What the table says of the parameters of the real kernels, by function."""
    pytest.importorskip("triton", reason="no triton")
    describe = import_module("plugins_trt.ahead_of_time.part").parameters
    return {
        unit.function.removesuffix("_kernel"): describe(unit)
        for unit in import_module(f"plugins_trt.{part}.aot").units()
    }
