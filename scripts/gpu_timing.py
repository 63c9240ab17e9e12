"""Times of GPU work from CUDA graph replays, and the ceilings of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from scripts.ceilings import Ceilings

REPLAYS = 25
MIN_REPLAY_MS = 0.5  # calls are repeated inside the graph until a replay takes this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one call over all replays."""

    median_ms: float
    p10_ms: float
    p90_ms: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def time_graph(call: Callable[[], object]) -> Timing:
    """Time of a call without its launch overhead: repeated in a CUDA graph, after a warm-up.

    Every repetition works on the same buffers, so inputs that fit the L2 cache are read from it, as
    they are behind the kernel that writes them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
        once_ms = _replay_ms(_capture(call, 1, stream), 3)[-1]
        count = max(1, min(100, round(MIN_REPLAY_MS / max(once_ms, 1e-3))))
        times_ms = _replay_ms(_capture(call, count, stream), REPLAYS) / count
    torch.cuda.current_stream().wait_stream(stream)
    p10, median, p90 = np.percentile(times_ms, (10, 50, 90))
    return Timing(median_ms=float(median), p10_ms=float(p10), p90_ms=float(p90))


def _capture(
    call: Callable[[], object], count: int, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    return graph


def _replay_ms(graph: torch.cuda.CUDAGraph, count: int) -> np.ndarray:
    graph.replay()
    times_ms = []
    for _ in range(count):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times_ms.append(start.elapsed_time(stop))
    return np.array(times_ms)


def measure_ceilings(
    side: int = 8192, copy_bytes: int = 2**31, dtype: torch.dtype = torch.float16
) -> Ceilings:
    """Of this GPU, for products in a dtype."""
    a, b = torch.randn(2, side, side, device="cuda", dtype=dtype).unbind(0)
    product_ms = time_graph(lambda: a @ b).median_ms
    source = torch.randint(255, (copy_bytes,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_ms = time_graph(lambda: target.copy_(source)).median_ms
    return Ceilings(
        tflops=2 * side**3 / product_ms * 1e-9, gbytes_per_s=2 * copy_bytes / copy_ms * 1e-6
    )
