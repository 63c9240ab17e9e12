"""The kernels for linear layers of few rows on Hopper, one by one, against PyTorch in float32.

    python -m pytest tests/gpu/test_narrow_kernels.py -v

needs the built plugin library, `cuda.bindings` and an H100. Sizes lie off the tiles; outputs begin
as NaN, and stay so beyond them.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.cuda import CudaDevice
from runtime.backends.kernel_library import KernelLibrary
from runtime.launches import blocks
from tests.gpu.library import open_kernels
from tests.gpu.single_kernels import EPILOGUES, LinearLayer, Output, half, launch, names

transformer_aot = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> KernelLibrary:
    return open_kernels("transformer", device)


def grid_of(kernels: KernelLibrary, name: str, rows: int, width: int) -> tuple[int, int]:
    of = kernels.table[name]["constants"]
    return of["SPLITS"] * blocks(width, of["BLOCK_N"]), blocks(rows, of["BLOCK_M"])


@pytest.mark.parametrize(
    ("rows", "length", "depth", "width"),
    [
        (1, 1, 64, 64),  # less depth than programs that share it
        (8, 4, 1024, 192),
        (13, 5, 128, 64),
        (129, 43, 320, 320),
        (300, 7, 2048, 1088),
    ],
)
@pytest.mark.parametrize("name", names(transformer_aot, "narrow"))
def test_linear_layers(
    kernels: KernelLibrary, name: str, rows: int, length: int, depth: int, width: int
) -> None:
    layer = LinearLayer(kernels.table[name]["constants"], rows, length, depth, width)
    grid = grid_of(kernels, name, rows, width)
    arguments = {**layer.arguments, "out": layer.out.values}
    after = half(1000, 64)  # not a multiple of what a program brings into the cache
    prefetch: dict[str, Tensor | int] = {"next": after, "next_nbytes": 2 * after.numel()}
    for following in ({}, prefetch):
        layer.out.values.fill_(torch.nan)
        launch(kernels, name, grid, {**arguments, **following})
        layer.out.check(layer.expected)


@pytest.mark.parametrize("name", names(transformer_aot, "narrow"))
def test_results_do_not_depend_on_other_rows(kernels: KernelLibrary, name: str) -> None:
    layer = LinearLayer(kernels.table[name]["constants"], 40, 1, 256, 128)
    grid = grid_of(kernels, name, 40, 128)
    arguments = {**layer.arguments, "out": layer.out.values}
    launch(kernels, name, grid, arguments)
    alone = layer.out.values.clone()
    for name_of in ("x", "residual", "ada"):
        tensor = arguments[name_of]
        assert isinstance(tensor, Tensor)
        tensor[7:] = torch.nan
    launch(kernels, name, grid, arguments)
    assert torch.equal(layer.out.values[:7], alone[:7])


@pytest.mark.parametrize("name", names(transformer_aot, "narrow"))
def test_tail_of_gelu(kernels: KernelLibrary, name: str) -> None:
    if kernels.table[name]["constants"]["EPILOGUE"] != EPILOGUES["gelu"]:
        pytest.skip("another epilogue")
    width = 1024
    bias = torch.linspace(-6, 0, width, device="cuda").half()
    out = Output(1, width)
    tensors = {"x": half(1, 64) * 0, "weights": half(64, width), "bias": bias, "out": out.values}
    sizes = {"rows": 1, "length": 1, "depth": 64, "width": width}
    launch(kernels, name, grid_of(kernels, name, 1, width), {**tensors, **sizes})
    y = F.gelu(bias.double(), approximate="tanh")  # in float32 it cancels
    limit = y.abs() * 2**-11 + 2**-24  # of rounding
    excess = ((out.values.double() - y).abs() / limit).max()
    assert excess <= 1.01, f"{excess:.2g} times the limit"
