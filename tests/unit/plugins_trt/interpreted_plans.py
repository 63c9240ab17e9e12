"""Runs plans of launches in Triton's interpreter; for processes with TRITON_INTERPRET set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from plugins_trt.ahead_of_time.lowering import Unit
from runtime.launches import ARRIVALS, LaunchPlan

# what the compiler's functions say of their parameters, and the interpreter's do not
InterpretedFunction.params = property(  # type: ignore[attr-defined]
    lambda self: [
        SimpleNamespace(name=name, is_constexpr=parameter.annotation == "tl.constexpr")
        for name, parameter in inspect.signature(self.fn).parameters.items()
    ]
)

DTYPES = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32}


def run_plan(plan: LaunchPlan, units: Mapping[str, Unit], values: Mapping[str, Tensor]) -> None:
    """Launches all kernels, by name in `units`; scratch memory begins as NaN."""
    scratch = torch.full((plan.nbytes,), 0xFF, dtype=torch.uint8)
    arrivals = torch.zeros(max(plan.num_arrivals, 1), dtype=torch.int32)

    def place(name: str, kind: str) -> Tensor:
        if name == ARRIVALS:
            return arrivals
        if name in plan.offsets:
            dtype = DTYPES[kind]
            start = plan.offsets[name]
            stop = start + (plan.nbytes - start) // dtype.itemsize * dtype.itemsize
            return scratch[start:stop].view(dtype)
        assert values[name].dtype == DTYPES[kind], name
        return values[name]

    for step in plan.steps:
        unit = units[step.kernel]
        kernel = getattr(import_module(unit.module), unit.function)
        arguments: dict[str, Any] = {}
        for name, kind in unit.parameters:
            if name in step.pointers:
                arguments[name] = place(step.pointers[name], kind)
            elif kind.startswith("*"):
                arguments[name] = torch.zeros(1, dtype=DTYPES[kind])
            else:
                arguments[name] = step.scalars.get(name, 0)
        constants = dict(unit.constants)
        if "OVERLAPS" in constants:
            constants["OVERLAPS"] = 0
        grid = (*step.grid, 1, 1)[:3]
        kernel[grid](**arguments, **constants)
    assert not arrivals.any()


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    return float((ours.float() - expected).norm() / expected.norm())
