"""Tables of the plugin library's kernels, without compiling them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def kernel_table(aot: ModuleType) -> dict[str, dict[str, Any]]:
    """What the table of a module `aot` says of compute capability 9.0."""
    lowering = pytest.importorskip("plugins_trt.ahead_of_time.lowering", reason="no triton")
    part = pytest.importorskip("plugins_trt.ahead_of_time.part", reason="no triton")
    kernels = {
        (90, unit): lowering.Kernel(ptx="", threads=128, shared_bytes=0) for unit in aot.units()
    }
    return part.table(aot.units(), kernels)["90"]
