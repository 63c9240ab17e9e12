"""What tests of single kernels share: memory that begins as NaN, launches, linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.kernel_library import KernelLibrary
from runtime.launches import blocks

cuda = pytest.importorskip("plugins_trt.ahead_of_time.cuda", reason="no triton")

RMS = 4e-4  # an output is rounded to float16, which is 2e-4; upsampling's weights are, too
GUARD = 1024  # values behind an output
EPILOGUES = {"plain": 0, "gelu": 1, "residual": 2, "silu": 3, "gelu_erf": 4}
GATES_AT = 64


def names(aot: ModuleType, function: str) -> list[str]:
    """Kernels in CUDA C++ of a function."""
    units = (unit for unit in aot.units() if isinstance(unit, cuda.CudaUnit))
    return [unit.name for unit in units if unit.function == f"{function}_kernel"]


class Output:
    """Memory that begins as NaN, with some behind the values that must stay so."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.half) -> None:
        count = torch.Size(shape).numel()
        self._all = torch.full((count + GUARD,), torch.nan, dtype=dtype, device="cuda")
        self.values = self._all[:count].view(shape)

    @property
    def is_guarded(self) -> bool:
        return bool(self._all[-GUARD:].isnan().all())

    def check(self, expected: Tensor, limit: float = RMS) -> None:
        assert self.is_guarded, "written behind the output"
        error = (self.values.float() - expected).norm() / expected.norm()
        assert error < limit, f"relative error {error:.2g}"


def launch(
    kernels: KernelLibrary,
    name: str,
    grid: tuple[int, ...],
    arguments: Mapping[str, Tensor | int],
) -> None:
    addresses = {
        key: value.data_ptr() if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    stream = torch.cuda.current_stream().cuda_stream
    if most := kernels.table[name].get("programs"):
        grid = (min(grid[0], most),)
    kernels.launch(name, grid, stream, addresses)
    torch.cuda.synchronize()


def half(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.half, device="cuda")


class LinearLayer:
    """A random linear layer: what a kernel is given, and what it must compute.

    Attributes:
        arguments: of a launch, but what it writes.
        out: of the kernel.
        expected: (rows, width) float32, by PyTorch.
    """

    def __init__(
        self, of: Mapping[str, int], rows: int, length: int, depth: int, width: int
    ) -> None:
        torch.manual_seed(0)
        has_low = of["HAS_LOW"]
        x = half(rows, (1 + has_low) * depth)
        weights = half((1 + has_low) * depth, width) / depth**0.5
        bias, residual = half(width), half(rows, width)
        ada = half(blocks(rows, length), GATES_AT + width + 8)
        self.out = Output(rows, width, dtype=torch.float32 if has_low else torch.half)
        y = x[:, :depth].float() @ weights[:depth].float()
        if has_low:
            bias = bias.float()
            y += x[:, :depth].float() @ weights[depth:].float()
            y += x[:, depth:].float() @ weights[:depth].float()
        y += bias.float()
        if of["EPILOGUE"] == EPILOGUES["gelu"]:
            y = F.gelu(y, approximate="tanh")
        if of["EPILOGUE"] == EPILOGUES["gelu_erf"]:
            y = F.gelu(y)
        if of["EPILOGUE"] == EPILOGUES["silu"]:
            y = F.silu(y)
        if of["EPILOGUE"] == EPILOGUES["residual"]:
            gates = ada[:, GATES_AT : GATES_AT + width].repeat_interleave(length, dim=0)[:rows]
            y = residual.float() + gates.float() * y
        self.expected = y
        self.arguments: dict[str, Tensor | int] = {
            "x": x, "ada": ada, "weights": weights, "bias": bias, "residual": residual,
            "rows": rows, "length": length, "depth": depth, "width": width,
            "ada_stride": ada.stride(0), "gate_at": GATES_AT,
        }  # fmt: skip
