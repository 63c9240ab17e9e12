"""Plot of the figures of `scripts/bench_attention.py`. Needs matplotlib: pip install '.[bench]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench_attention import Row

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
    panels = {
        f"{pattern}, {'q/k L2 norm' if norm else 'no norm'}": [
            row
            for row in rows
            if row["shape"].startswith("pyramid")
            and (row["pattern"], row["l2_norm"]) == (pattern, norm)
        ]
        for pattern, norm in PANELS
    }
    panels["single scales (B = 2), packs of short blocks (B = 1)"] = [
        row for row in rows if not row["shape"].startswith("pyramid") and not row["l2_norm"]
    ]
    panels = {title: chosen for title, chosen in panels.items() if chosen}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 5), layout="constrained", squeeze=False
    )
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["what"] for row in rows))}
    for axis, (title, chosen) in zip(axes[0], panels.items(), strict=True):
        _bars(axis, chosen, colors)
        axis.set_title(title)
        axis.legend()
    axes[0, 0].set_ylabel("µs, lower is better")
    figure.suptitle(f"hmar::BlockSparseAttention, fp16, d = 64, {report['gpu']}")
    figure.savefig(path, dpi=80)


def _bars(axis: Any, rows: list[Row], colors: dict[str, str]) -> None:
    """Grouped bars: one group per shape and number of heads."""
    groups = list(dict.fromkeys((row["shape"], row["heads"]) for row in rows))
    contestants = [name for name in colors if any(row["what"] == name for row in rows)]
    width = 0.8 / len(contestants)
    for i, name in enumerate(contestants):
        own = {(r["shape"], r["heads"]): r["median_ms"] * 1e3 for r in rows if r["what"] == name}
        x = [j + (i - (len(contestants) - 1) / 2) * width for j, g in enumerate(groups) if g in own]
        axis.bar(x, [own[g] for g in groups if g in own], width, label=name, color=colors[name])
    labels = [f"{shape.removeprefix('pyramid-')}\nH={heads}" for shape, heads in groups]
    axis.set_xticks(range(len(groups)), labels, fontsize=7, rotation=0 if len(groups) < 8 else 90)
    axis.set_yscale("log")
