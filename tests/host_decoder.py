"""A stand-in for the decoder's kernels: PyTorch computes them, on the host's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.kernel_library import KernelTable
from runtime.decoder_plan import DecoderSizes
from tests.host_device import HostDevice, memory

TILES = {0: (2, 4), 64: (8, 8)}  # height and width, by the number of pixels from which on
WIDE_FROM, WIDE_TILE = 256, (2, 8)  # the same, of the persistent kernels
PROGRAMS, CLUSTER = 6, 2  # of these, and how many share weights


def host_table(sizes: DecoderSizes) -> KernelTable:
    """What a decoder of these sizes may ask for, and more."""
    widths = {sizes.latent_channels, *sizes.widths}
    pairs = {*product(widths, repeat=2), *((w, 3 * w) for w in widths), *((w, 3) for w in widths)}
    table: dict[str, dict[str, Any]] = {}

    def add(function: str, from_pixels: int = 0, **constants: int) -> None:
        entry = {"function": function, "from_pixels": from_pixels, "constants": constants}
        entry["programs"] = PROGRAMS
        if function == "wide_conv":
            entry["tensor_maps"] = _tensor_maps(constants)
        table[f"{function}{len(table)}"] = entry

    for (cin, cout), side, upsamples in product(pairs, (1, 3), (False, True)):
        sizes_of = {"CIN": cin, "COUT": cout, "SIDE": side, "UPSAMPLES": upsamples}
        for residual, sums in product((0, 1), (0, 1)):
            of = {**sizes_of, "HAS_RESIDUAL": residual, "HAS_SUMS": sums}
            for pixels, (height, width) in TILES.items():
                tile = {"TILE_H": height, "TILE_W": width, "BLOCK_N": 16, "REST_N": 8}
                add("conv", pixels, **of, **tile)
            height, width = WIDE_TILE
            tile = {"TILE_H": height, "TILE_W": width, "BLOCK_N": 32, "REST_N": 0}
            tile["CLUSTER"] = CLUSTER
            add("wide_conv", WIDE_FROM, **of, **tile)
    for width in widths:
        add("statistics", CHANNELS=width, GROUPS=32)
        add("attention", CHANNELS=width, BLOCK_Q=16, BLOCK_C=32)
        add("from_planes", CHANNELS=width, BLOCK=8)
        for has_silu in (0, 1):
            add("normalize", CHANNELS=width, HAS_SILU=has_silu, BLOCK=64)
    for clamps in (0, 1):
        add("to_image", CLAMPS=clamps, BLOCK=64)
    add("from_tokens", BLOCK=32)
    return table


def _tensor_maps(of: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    taps, phases = (4, 4) if of["UPSAMPLES"] else (of["SIDE"] ** 2, 1)
    pixels = [[of["CIN"], None], [1, "width"], [1, "height"], [1, "batch"]]
    weights = [[of["CIN"], None], [taps, None], [phases * of["COUT"], None]]
    x_map = {"sizes": pixels, "box": [64, of["TILE_W"], of["TILE_H"], 1]}
    w_map = {"sizes": weights, "box": [64, 1, of["BLOCK_N"] // CLUSTER]}
    return {"x": x_map, "weights": w_map, "x_rest": x_map, "weights_rest": w_map}


class HostDecoderKernels:
    """Computes in float32, and stores what the kernels store; arguments as of theirs."""

    def __init__(self, table: KernelTable) -> None:
        self.table = table
        self.launched: list[str] = []

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        assert stream == HostDevice.stream
        self.launched.append(name)
        entry = self.table[name]
        getattr(self, f"_{entry['function']}")(entry["constants"], grid, **arguments)

    def _conv(
        self, of: Mapping[str, int], grid: Sequence[int], *, x: int, weights: int, bias: int,
        out: int, height: int, width: int, residual: int = 0, sums: int = 0,
    ) -> None:  # fmt: skip
        tiles = math.ceil(height / of["TILE_H"]) * math.ceil(width / of["TILE_W"])
        blocks = math.ceil(of["COUT"] / (of["BLOCK_N"] + of["REST_N"]))
        assert tuple(grid[:2]) == (tiles * blocks, 4 if of["UPSAMPLES"] else 1)
        places = {"x": x, "weights": weights, "bias": bias, "out": out}
        self._compute(of, grid[2], height, width, tiles, residual, sums, **places)

    def _wide_conv(
        self, of: Mapping[str, int], grid: Sequence[int], *, batch: int, height: int, width: int,
        x_rest: int, weights_rest: int, residual: int = 0, sums: int = 0, **rest: int,
    ) -> None:  # fmt: skip
        tiles = math.ceil(height / of["TILE_H"]) * math.ceil(width / of["TILE_W"])
        clusters = math.ceil(batch * tiles / CLUSTER) * math.ceil(of["COUT"] / of["BLOCK_N"])
        clusters *= 4 if of["UPSAMPLES"] else 1
        assert tuple(grid) == (min(CLUSTER * clusters, PROGRAMS),)
        assert (x_rest, weights_rest) == (rest["x"], rest["weights"])
        self._compute(of, batch, height, width, tiles, residual, sums, **rest)

    def _compute(
        self, of: Mapping[str, int], B: int, height: int, width: int, tiles: int, residual: int,
        sums: int, *, x: int, weights: int, bias: int, out: int,
    ) -> None:  # fmt: skip
        cin, cout = of["CIN"], of["COUT"]
        factor, side = (2, 2) if of["UPSAMPLES"] else (1, of["SIDE"])
        pad = side // 2
        x_BChw = F.pad(_tensor(x, B, height, width, cin).movedim(3, 1), (pad,) * 4)
        folded = _tensor(weights, factor**2, cout, side, side, cin).movedim(4, 2)
        y = torch.empty((B, factor * height, factor * width, cout))
        for phase, weights_of_phase in enumerate(folded):
            row, column = divmod(phase, factor)
            rows = height + side - 1, width + side - 1
            reads = x_BChw[:, :, row : row + rows[0], column : column + rows[1]]
            y[:, row::factor, column::factor] = F.conv2d(reads, weights_of_phase).movedim(1, 3)
        y += _tensor(bias, cout, dtype=np.float32)
        assert bool(residual) == bool(of["HAS_RESIDUAL"]) and bool(sums) == bool(of["HAS_SUMS"])
        if residual:
            assert residual != out
            y += _tensor(residual, *y.shape)
        memory(out, np.float16, *y.shape)[...] = y
        if sums:
            values = _tensor(out, *y.shape).flatten(1, 2)
            written = memory(sums, np.float32, B, factor**2 * tiles, 2, cout)
            written[...] = 0
            written[:, 0] = torch.stack((values.sum(1), values.square().sum(1)), dim=1)

    def _statistics(
        self, of: Mapping[str, int], grid: Sequence[int], *, sums: int, gain: int, bias: int,
        scale_shift: int, num_tiles: int, num_pixels: int, eps: float,
    ) -> None:  # fmt: skip
        (groups, B), C = grid, of["CHANNELS"]
        total = _tensor(sums, B, num_tiles, 2, C, dtype=np.float32).double().sum(1)
        mean, square = total.view(B, 2, groups, -1).mean(-1, keepdim=True).unbind(1)
        mean, square = mean / num_pixels, square / num_pixels
        scale = _tensor(gain, groups, C // groups, dtype=np.float32) / (
            (square - mean.square() + eps).sqrt()
        )
        shift = _tensor(bias, groups, C // groups, dtype=np.float32) - mean * scale
        both = torch.stack((scale, shift), dim=1).view(B, 2, C)
        memory(scale_shift, np.float32, B, 2, C)[...] = both

    def _normalize(
        self, of: Mapping[str, int], grid: Sequence[int], *, x: int, scale_shift: int, out: int,
        num_values: int,
    ) -> None:  # fmt: skip
        (programs, B), C = grid, of["CHANNELS"]
        assert programs == math.ceil(num_values / of["BLOCK"])
        scale, shift = _tensor(scale_shift, B, 2, 1, C, dtype=np.float32).unbind(1)
        y = _tensor(x, B, num_values // C, C) * scale + shift
        memory(out, np.float16, *y.shape)[...] = F.silu(y) if of["HAS_SILU"] else y

    def _attention(
        self, of: Mapping[str, int], grid: Sequence[int], *, qkv: int, out: int, num_pixels: int,
        sm_scale: float,
    ) -> None:  # fmt: skip
        C, B = of["CHANNELS"], grid[2]
        assert tuple(grid[:2]) == (math.ceil(num_pixels / of["BLOCK_Q"]), C // of["BLOCK_C"])
        q, k, v = _tensor(qkv, B, num_pixels, 3 * C).chunk(3, dim=-1)
        p = (q @ k.transpose(1, 2) * sm_scale).softmax(dim=-1)
        memory(out, np.float16, B, num_pixels, C)[...] = p @ v

    def _from_planes(
        self, of: Mapping[str, int], grid: Sequence[int], *, planes: int, out: int, num_pixels: int
    ) -> None:
        C, (programs, B) = of["CHANNELS"], grid
        assert programs == math.ceil(num_pixels / of["BLOCK"])
        x = memory(planes, np.float32, B, C, num_pixels)
        memory(out, np.float16, B, num_pixels, C)[...] = x.swapaxes(1, 2)

    def _from_tokens(
        self, of: Mapping[str, int], grid: Sequence[int], *, tokens: int, out: int,
        num_values: int, factor: float,
    ) -> None:  # fmt: skip
        assert tuple(grid) == (math.ceil(num_values / of["BLOCK"]),)
        x = memory(tokens, np.float32, num_values)
        memory(out, np.float16, num_values)[...] = x * np.float32(factor)

    def _to_image(
        self, of: Mapping[str, int], grid: Sequence[int], *, x: int, image: int, num_pixels: int
    ) -> None:
        programs, B = grid
        assert programs == math.ceil(num_pixels / of["BLOCK"])
        y = _tensor(x, B, num_pixels, 3)
        y = (y.clamp(-1, 1) if of["CLAMPS"] else y) / 2 + 0.5
        memory(image, np.float32, B, 3, num_pixels)[...] = y.transpose(1, 2)


def _tensor(address: int, *shape: int, dtype: Any = np.float16) -> Tensor:
    return torch.from_numpy(memory(address, dtype, *shape)).float()
