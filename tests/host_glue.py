"""A stand-in for the kernels between the passes: PyTorch computes them, on the host's memory."""

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


def host_table(channels: int) -> KernelTable:
    """What a model with maps of these channels may ask for."""
    table: dict[str, dict[str, Any]] = {}

    def add(function: str, **constants: int) -> None:
        table[f"{function}{len(table)}"] = {"function": function, "constants": constants}

    for function in ("class", "shared_modulation", "first"):
        add(function, BLOCK=32)
    for rows in (2, 4):
        add("modulation", BLOCK_M=rows, BLOCK_N=32, BLOCK_K=32)
    for flag in (0, 1):
        add("embed", HAS_MASK=flag, CHANNELS=channels, BLOCK_M=4, BLOCK_N=32)
        add("phi", ADDS=flag, CHANNELS=channels, BLOCK=8)
    add("enlarge", CHANNELS=channels, BLOCK=8)
    for size in (4, 16):
        add("reduce", CHANNELS=channels, WINDOW=size)
    return table


class HostGlueKernels:
    """Computes in float32, and stores what the kernels store; arguments as of theirs."""

    def __init__(self, table: KernelTable) -> None:
        self.table = table

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        assert stream == HostDevice.stream
        entry = self.table[name]
        getattr(self, f"_{entry['function']}")(entry["constants"], tuple(grid), **arguments)

    def _class(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, labels: int, class_emb: int,
        cond: int, act: int, width: int,
    ) -> None:  # fmt: skip
        columns, N = grid
        assert columns == math.ceil(width / of["BLOCK"])
        rows = memory(labels, np.int32, N)
        x = memory(class_emb, np.float16, rows.max() + 1, width)[rows]
        memory(cond, np.float16, N, width)[...] = x
        memory(act, np.float16, N, width)[...] = F.silu(torch.from_numpy(x).float())

    def _modulation(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, act: int, weights: int, biases: int,
        out: int, rows: int, depth: int, width: int, layer_stride: int,
    ) -> None:  # fmt: skip
        layers = grid[1]
        assert grid == (width // of["BLOCK_N"], layers, math.ceil(rows / of["BLOCK_M"]))
        x, y = _tensor(act, rows, depth), memory(out, np.float16, rows, layers, width)
        for i in range(layers):
            w = _tensor(weights + 2 * i * layer_stride, depth, width)
            y[:, i] = (x @ w).half() + _tensor(biases + 2 * i * layer_stride, width).half()

    def _shared_modulation(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, shared: int, own: int, out: int,
        width: int, layer_stride: int,
    ) -> None:  # fmt: skip
        columns, layers, N = grid
        assert columns == math.ceil(width / of["BLOCK"])
        each = memory(own, np.float16, layers, layer_stride)[:, :width]
        out_NLw = memory(out, np.float16, N, layers, width)
        out_NLw[...] = memory(shared, np.float16, N, 1, width) + each

    def _first(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, cond: int, pos: int, out: int,
        width: int,
    ) -> None:  # fmt: skip
        assert grid[0] == math.ceil(width / of["BLOCK"])
        x = memory(cond, np.float16, grid[1], width) + memory(pos, np.float16, width)
        memory(out, np.float16, grid[1], width)[...] = x

    def _embed(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, x: int, word_embed: int, pos: int,
        positions: int, out: int, rows: int, length: int, width: int, h: int = 0,
        token_mask: int = 0, mask_embed: int = 0,
    ) -> None:  # fmt: skip
        assert grid == (width // of["BLOCK_N"], math.ceil(rows / of["BLOCK_M"]))
        K, w = of["CHANNELS"], _tensor(word_embed, of["CHANNELS"], width)
        y = (_rounded(x, rows, K) @ w).half()
        if of["HAS_MASK"]:
            is_masked = torch.from_numpy(memory(token_mask, np.bool_, rows, 1))
            masked = _tensor(mask_embed, width).half()
            y += torch.where(is_masked, masked, (_rounded(h, rows, K) @ w).half())
        at = memory(positions, np.int32, length)
        y += _tensor(pos, at.max() + 1, width)[at].half().repeat(rows // length, 1)
        memory(out, np.float16, rows, width)[...] = y

    def _enlarge(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, tokens: int, codebook: int,
        taps: int, shares: int, out: int, side: int, pn: int,
    ) -> None:  # fmt: skip
        (programs, B), C = grid, of["CHANNELS"]
        assert programs == math.ceil(side * side / of["BLOCK"])
        ids = memory(tokens, np.int32, B, pn, pn)
        rows = memory(codebook, np.float32, ids.max() + 1, C)[ids]
        cells, share = memory(taps, np.int32, side, 4), memory(shares, np.float32, side, 4)
        matrix = np.zeros((side, pn), np.float32)
        np.add.at(matrix, (np.arange(side)[:, None], cells), share)
        memory(out, np.float32, B, side, side, C)[...] = np.einsum(
            "yi,xj,bijc->byxc", matrix, matrix, rows
        )

    def _phi(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, h: int, weights: int, bias: int,
        out: int, side: int, f_hat: int = 0,
    ) -> None:  # fmt: skip
        (programs, B), C = grid, of["CHANNELS"]
        assert programs == math.ceil(side * side / of["BLOCK"])
        x = _floats(h, B, side, side, C).movedim(3, 1)
        w = _floats(weights, 3, 3, C, C).permute(3, 2, 0, 1)
        y = x / 2 + F.conv2d(x, w, _floats(bias, C), padding=1) / 2
        assert bool(f_hat) == bool(of["ADDS"])
        if f_hat:
            y = y + _floats(f_hat, *y.shape)
        memory(out, np.float32, *y.shape)[...] = y

    def _reduce(
        self, of: Mapping[str, int], grid: tuple[int, ...], *, planes: int, out: int, side: int,
        reduced: int,
    ) -> None:  # fmt: skip
        (cells, B), C = grid, of["CHANNELS"]
        assert cells == reduced * reduced
        y = F.adaptive_avg_pool2d(_floats(planes, B, C, side, side), (reduced, reduced))
        memory(out, np.float32, B, cells, C)[...] = y.flatten(2).transpose(1, 2)


def _tensor(address: int, *shape: int) -> Tensor:
    return torch.from_numpy(memory(address, np.float16, *shape)).float()


def _floats(address: int, *shape: int) -> Tensor:
    return torch.from_numpy(memory(address, np.float32, *shape))


def _rounded(address: int, *shape: int) -> Tensor:
    return _floats(address, *shape).half().float()
