"""Fetching headers and timing the custom op, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(script: str, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"scripts/{script}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **settings)


@pytest.mark.parametrize("script", ["fetch_headers.py", "bench_custom_op.py"])
def test_help(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout


def test_fetching_headers_without_apt(tmp_path: Path) -> None:
    done = run("fetch_headers.py", "--out", tmp_path, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("error: apt-get: not found; this script needs Debian's")
    assert not list(tmp_path.iterdir())


def test_bench_compares_and_times(ort_library: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    size = ("--heads", 1, "--head-dim", 16, "--runs", 2)
    done = run("bench_custom_op.py", "--library", ort_library, *size, "--json", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8
    assert all(ms > 0 for row in rows for figures in row["p10_median_p90_ms"] for ms in figures)


def test_bench_without_the_library(tmp_path: Path) -> None:
    done = run("bench_custom_op.py", "--library", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: libhmar_ort.so: not found at ")
