"""Plot of the figures of `scripts/bench.py`. Needs matplotlib: pip install '.[bench]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.generation_times import WHOLE, Row


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws the time of an image for every contestant and batch, and what it is made of.

    Raises:
        ValueError: matplotlib is not installed, or nothing was measured.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError(f"{error}; --plot needs: pip install matplotlib") from error
    rows = [row for row in report["rows"] if "error" not in row]
    if not rows:
        raise ValueError("nothing to plot: no backend could be measured")
    figure, (whole, parts) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    _draw_whole(whole, rows)
    _draw_parts(parts, [row for row in rows if "parts" in row])
    machine = report["machine"]
    device = machine["cpu"] if machine["gpu"] == "none" else machine["gpu"]
    figure.suptitle(f"{report['bundle']}, {report['precision']}, {device}")
    figure.savefig(path, dpi=80)


def _draw_whole(axis: Any, rows: list[Row]) -> None:
    for name in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == name]
        ms = [row["median_ms"] / row["batch"] for row in own]
        axis.plot([row["batch"] for row in own], ms, marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms per image, lower is better")
    batches = sorted({row["batch"] for row in rows})
    axis.set_xticks(batches, [str(b) for b in batches])
    axis.set_xticks([], minor=True)
    axis.legend()


def _draw_parts(axis: Any, rows: list[Row]) -> None:
    """Stacked bars of the parts, for one image each."""
    names = dict.fromkeys(part for row in rows for part in row["parts"] if part != WHOLE)
    labels = [f"{row['what']}\nB={row['batch']}" for row in rows]
    bottom = [0.0] * len(rows)
    for name in names:
        ms = [row["parts"].get(name, {"median_ms": 0})["median_ms"] / row["batch"] for row in rows]
        axis.bar(range(len(rows)), ms, bottom=bottom, label=name)
        bottom = [b + m for b, m in zip(bottom, ms, strict=True)]
    axis.set_xticks(range(len(rows)), labels)
    axis.set_ylabel("ms per image, step by step")
    if rows:
        axis.legend()
