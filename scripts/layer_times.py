"""Times of an engine's layers over many runs, in the form of trtexec."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


class LayerTimes:
    """Milliseconds of every layer in every run."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []

    def begin_run(self) -> None:
        self._runs.append({})

    def report(self, layer: str, ms: float) -> None:
        """Layers of equal name within a run are added."""
        self._runs[-1][layer] = self._runs[-1].get(layer, 0.0) + ms

    def export(self) -> list[dict[str, Any]]:
        """The number of runs and then the layers, in the order of trtexec: as they run."""
        names = dict.fromkeys(name for times in self._runs for name in times)
        of_layer = {n: [times.get(n, 0.0) for times in self._runs] for n in names}
        whole_ms = sum(map(sum, of_layer.values()))
        return [
            {"count": len(self._runs)},
            *(
                {
                    "name": name,
                    "timeMs": sum(times_ms),
                    "averageMs": statistics.fmean(times_ms),
                    "medianMs": statistics.median(times_ms),
                    "percentage": 100 * sum(times_ms) / whole_ms if whole_ms else 0.0,
                }
                for name, times_ms in of_layer.items()
            ),
        ]


def table(exported: Sequence[dict[str, Any]], top: int) -> str:
    """Layers by time, the slowest first.

    Args:
        top: layers to show, 0 = all.
    """
    count, *layers = exported
    layers = sorted(layers, key=lambda layer: -layer["timeMs"])
    whole_ms = sum(layer["averageMs"] for layer in layers)
    lines = [f"{'average ms':>11} {'median ms':>11} {'share':>7}  layer"]
    for layer in layers[: top or None]:
        lines.append(
            f"{layer['averageMs']:11.4f} {layer['medianMs']:11.4f} {layer['percentage']:6.1f}%  "
            f"{layer['name']}"
        )
    shown = f"{min(top or len(layers), len(layers))} of {len(layers)} layers"
    return "\n".join([*lines, f"{whole_ms:11.4f} ms a run, {count['count']} runs, {shown}"])
