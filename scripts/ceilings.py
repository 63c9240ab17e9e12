"""What a machine reaches: the rates that achieved ones are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates of a large matrix product, and of a large copy (read plus write)."""

    tflops: float
    gbytes_per_s: float

    def floor_ms(self, flops: float, num_bytes: float) -> float:
        """The least time of work that needs so many operations and bytes."""
        return max(flops / self.tflops * 1e-9, num_bytes / self.gbytes_per_s * 1e-6)


def measure_host_ceilings(side: int = 2048, copy_bytes: int = 2**28) -> Ceilings:
    """Of the CPU, by NumPy, in float32."""
    a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    source = np.zeros(copy_bytes, np.uint8)
    target = np.empty_like(source)
    product_ms = _best_ms(lambda: a @ b)
    copy_ms = _best_ms(lambda: np.copyto(target, source))
    return Ceilings(
        tflops=2 * side**3 / product_ms * 1e-9, gbytes_per_s=2 * copy_bytes / copy_ms * 1e-6
    )


def _best_ms(call: Callable[[], object], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3
