"""A stand-in for the transformer's kernels: PyTorch computes them, on the host's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.launches import KernelTable
from tests.host_device import HostDevice, memory

PROGRAMS, CLUSTER = 6, 2  # of a persistent kernel, and how many of these share weights
MANY_PROGRAMS = 12  # from which on there is another kernel for the attention
EPILOGUES = {"qkv": 0, "proj": 2, "fc1": 1, "fc2": 2, "head": 0}


def host_table() -> KernelTable:
    """One kernel of each kind, and some for every linear layer: whole, split, narrow and wide."""
    table: dict[str, dict[str, Any]] = {}

    def add(function: str, part: str, size: int, **constants: int) -> None:
        table[f"{part}{size}"] = {
            "function": function, "uses": {part: [(0, size)]}, "constants": constants,
            "programs": PROGRAMS,
        }  # fmt: skip
        if function in ("narrow", "wide"):
            depth = [1 + constants["HAS_LOW"], "depth"]
            table[f"{part}{size}"]["tensor_maps"] = {
                "x": {"sizes": [depth, [1, "rows"]], "box": [64, 128]},
                "weights": {"sizes": [[1, "width"], depth], "box": [64, 32]},
            }

    for layer, epilogue in EPILOGUES.items():
        tile = {"BLOCK_M": 4, "BLOCK_N": 32, "BLOCK_K": 64}
        of = {"EPILOGUE": epilogue, "HAS_LOW": int(layer == "head"), **tile}
        add("linear", layer, 0, SPLITS=1, **of)
        if layer != "head":
            add("linear", layer, 3, SPLITS=2, **of)
        narrow = {**of, "BLOCK_M": 8, "BLOCK_N": 64, "BLOCK_K": 64}
        add("narrow", layer, 9, CLUSTER=1, SPLITS=2, **narrow)
        add("wide", layer, 20, CLUSTER=CLUSTER, SPLITS=1, COOPERATES=0, **of)
        if layer != "head":
            add("wide", layer, 40, CLUSTER=3, SPLITS=2, COOPERATES=1, **of)
    for has_low, part in enumerate(("norm", "head_norm")):
        add("normalize", part, 0, HAS_LOW=has_low)
    add("attention", "attention", 0, BLOCK_Q=4, BLOCK_L=16)
    add("attention", "attention", 9, BLOCK_Q=8, BLOCK_L=16)
    add("wide_attention", "wide_attention", 4, BLOCK_Q=8)
    table["wide_attention4"] |= {
        "from_programs": MANY_PROGRAMS,
        "tensor_maps": {
            "qkv": {"sizes": [[3, "width"], [1, "length"], [1, "images"]], "box": [64, 64, 1]}
        },
    }
    return table


class HostTransformerKernels:
    """Computes in float32, and stores what the kernels store; arguments as of theirs."""

    def __init__(self, table: KernelTable) -> None:
        self.table = table
        self.launched: set[str] = set()

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        assert stream == HostDevice.stream
        self.launched.add(name)
        entry = self.table[name]
        getattr(self, f"_{entry['function']}")(entry["constants"], tuple(grid), **arguments)

    def _normalize(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, x: int, ada: int, out: int,
        length: int, width: int, ada_stride: int, scale_at: int, shift_at: int, eps: float,
    ) -> None:  # fmt: skip
        (rows,) = grid
        scale = _vectors(ada, rows, length, ada_stride, scale_at, width)
        shift = _vectors(ada, rows, length, ada_stride, shift_at, width)
        y = F.layer_norm(_half(x, rows, width), (width,), eps=eps) * (1 + scale) + shift
        stored = memory(out, np.float16, rows, 1 + of["HAS_LOW"], width)
        stored[:, 0] = y
        if of["HAS_LOW"]:
            stored[:, 1] = y - y.half().float()

    def _attention(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, qkv: int, scale_mul: int, out: int,
        length: int, width: int,
    ) -> None:  # fmt: skip
        tiles, heads, N = grid
        assert tiles == math.ceil(length / of["BLOCK_Q"])
        q, k, v = _half(qkv, N, length, 3, heads, 64).permute(2, 0, 3, 1, 4)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
        scale = torch.from_numpy(memory(scale_mul, np.float32, heads))[:, None, None]
        y = (logits * scale).softmax(-1) @ v
        memory(out, np.float16, N, length, width)[...] = y.transpose(1, 2).flatten(2)

    def _wide_attention(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, images: int, **rest: int
    ) -> None:
        assert grid[2] == images and math.prod(grid) >= MANY_PROGRAMS
        self._attention(of, grid, **rest)

    def _linear(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, rows: int, width: int,
        partials: int = 0, arrivals: int = 0, **rest: int,
    ) -> None:  # fmt: skip
        tiles = math.ceil(rows / of["BLOCK_M"]) * math.ceil(width / of["BLOCK_N"])
        assert grid == (tiles, of["SPLITS"])
        if of["SPLITS"] > 1:
            assert not memory(arrivals, np.int32, tiles).any()
            memory(partials, np.float32, of["SPLITS"], rows, width)[...] = np.nan
        self._compute(of, rows=rows, width=width, **rest)

    def _narrow(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, rows: int, width: int,
        next: int = 0, next_nbytes: int = 0, **rest: int,
    ) -> None:  # fmt: skip
        tiles = math.ceil(width / of["BLOCK_N"]), math.ceil(rows / of["BLOCK_M"])
        assert grid == (of["SPLITS"] * tiles[0], tiles[1])
        if next_nbytes:
            assert memory(next, np.uint8, next_nbytes).max() > 0
        self._compute(of, rows=rows, width=width, **rest)

    def _wide(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, rows: int, width: int,
        partials: int = 0, arrivals: int = 0, **rest: int,
    ) -> None:  # fmt: skip
        tiles = of["CLUSTER"] * math.ceil(width / of["BLOCK_N"])
        tiles *= math.ceil(rows / (of["CLUSTER"] * of["BLOCK_M"]))
        assert grid == (min(tiles * of["SPLITS"], PROGRAMS),)
        if of["SPLITS"] > 1:
            assert not memory(arrivals, np.int32, tiles, 1 + of["COOPERATES"]).any()
            sums = tiles, of["SPLITS"], of["BLOCK_M"], of["BLOCK_N"]
            memory(partials, np.float32, *sums)[...] = np.nan
        self._compute(of, rows=rows, width=width, **rest)

    def _compute(
        self, of: Mapping[str, int], *, x: int, weights: int, bias: int, out: int, rows: int,
        length: int, depth: int, width: int, ada: int = 0, residual: int = 0, ada_stride: int = 0,
        gate_at: int = 0,
    ) -> None:  # fmt: skip
        if of["HAS_LOW"]:
            high, low = _half(x, rows, 2, depth).unbind(1)
            w_high, w_low = _half(weights, 2, depth, width)
            y = high @ w_high + high @ w_low + low @ w_high
            y += torch.from_numpy(memory(bias, np.float32, width))
            memory(out, np.float32, rows, width)[...] = y
            return
        y = _half(x, rows, depth) @ _half(weights, depth, width) + _half(bias, width)
        if of["EPILOGUE"] == EPILOGUES["fc1"]:
            y = F.gelu(y, approximate="tanh")
        if of["EPILOGUE"] == EPILOGUES["proj"]:
            gate = _vectors(ada, rows, length, ada_stride, gate_at, width)
            y = _half(residual, rows, width) + gate * y
        memory(out, np.float16, rows, width)[...] = y


def _half(address: int, *shape: int) -> Tensor:
    return torch.from_numpy(memory(address, np.float16, *shape)).float()


def _vectors(ada: int, rows: int, length: int, stride: int, at: int, width: int) -> Tensor:
    """A modulation vector of the image of every row."""
    images = rows // length
    values = memory(ada, np.float16, (images - 1) * stride + at + width)
    of_images = [torch.from_numpy(values[i * stride + at :][:width]) for i in range(images)]
    return torch.stack(of_images).float().repeat_interleave(length, dim=0)
