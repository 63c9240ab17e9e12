"""The report of `scripts/bench.py` as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.generation_times import WHOLE, Row


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Setup, work and ceilings, then every row with its parts below it."""
    yield "  ".join(f"{name} {value}" for name, value in report["machine"].items())
    yield (
        f"{report['bundle']}: {report['precision']}, {report['side_px']} px, {report['settings']}"
    )
    works = (f"{part} {flops * 1e-12:.3g}" for part, flops in report["image_flops"].items())
    yield f"TFLOP of one image: {', '.join(works)}"
    for device, rates in report["ceilings"].items():
        yield (
            f"ceilings, {device}: {rates['tflops']:.3g} TFLOP/s, {rates['gbytes_per_s']:.0f} GB/s"
        )
    for row in report["rows"]:
        yield from _row_lines(row)


def _row_lines(row: Row) -> Iterator[str]:
    name = f"{row['what']}, batch {row['batch']}" if "batch" in row else row["what"]
    if "error" in row:
        yield f"{name}: left out: {row['error']}"
        return
    memory = [f"host +{row['host_mb']:.0f} MB"]
    if row["device_mb"] is not None:
        memory.append(f"GPU +{row['device_mb']:.0f} MB")
    yield (
        f"{name}: {_times(row)}  {row['images_per_s']:.4g} images/s{_rates(row)}  "
        f"{', '.join(memory)}, first {row['first_ms'] * 1e-3:.2f} s"
    )
    parts = row.get("parts", {})
    for part, figures in parts.items():
        share = figures["median_ms"] / parts[WHOLE]["median_ms"]
        calls = f"{figures['calls']:3} x" if "calls" in figures else ""
        yield f"  {part:18} {calls:5} {_times(figures)}  {share:4.0%}{_rates(figures)}"


def _times(figures: Row) -> str:
    return f"{figures['median_ms']:9.3f} ms ({figures['p10_ms']:.3f} to {figures['p90_ms']:.3f})"


def _rates(figures: Row) -> str:
    if "tflops" not in figures:
        return ""
    text = f"  {figures['tflops']:.3g} TFLOP/s  {figures['gbytes_per_s']:.3g} GB/s"
    floor = figures.get("floor_share")
    return text if floor is None else f"{text}  floor {floor:.0%}"
