"""Plot of the figures of `scripts/bench_attention.py`. Needs matplotlib: pip install '.[bench]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench_attention import OURS, Row

PANELS = (("block_diagonal", False), ("block_causal", False), ("block_diagonal", True))


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws the time of every contestant: pyramids by pattern, then single scales and packs.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError(f"{error}; --plot needs: pip install matplotlib") from error
    rows = [row for row in report["rows"] if "error" not in row]
    figure, axes = plt.subplots(1, 4, figsize=(22, 5), layout="constrained")
    for axis, (pattern, norm) in zip(axes, PANELS, strict=False):
        pyramids = [
            row
            for row in rows
            if row["shape"].startswith("pyramid")
            and (row["pattern"], row["l2_norm"]) == (pattern, norm)
        ]
        _bars(axis, pyramids)
        axis.set_title(f"{pattern}, {'q/k L2 norm' if norm else 'no norm'}")
    others = [row for row in rows if not row["shape"].startswith("pyramid") and not row["l2_norm"]]
    _bars(axes[3], others)
    axes[3].set_title("single scales (B = 2), packs of short blocks (B = 1)")
    axes[0].set_ylabel("µs, lower is better")
    axes[0].legend()
    figure.suptitle(f"hmar::BlockSparseAttention, fp16, d = 64, {report['gpu']}")
    figure.savefig(path, dpi=80)


def _bars(axis: Any, rows: list[Row]) -> None:
    """Grouped bars: one group per shape and number of heads."""
    groups = list(dict.fromkeys((row["shape"], row["heads"]) for row in rows))
    contestants = list(dict.fromkeys([OURS, *(row["what"] for row in rows)]))
    width = 0.8 / len(contestants)
    for i, name in enumerate(contestants):
        own = {(r["shape"], r["heads"]): r["median_ms"] * 1e3 for r in rows if r["what"] == name}
        x = [j + (i - (len(contestants) - 1) / 2) * width for j, g in enumerate(groups) if g in own]
        axis.bar(x, [own[g] for g in groups if g in own], width, label=name)
    labels = [f"{shape.removeprefix('pyramid-')}\nH={heads}" for shape, heads in groups]
    axis.set_xticks(range(len(groups)), labels, fontsize=7, rotation=0 if len(groups) < 8 else 90)
    axis.set_yscale("log")
