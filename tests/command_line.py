"""The scripts as a user calls them, timed."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: object) -> str:
    """Standard output of a script that must succeed; shown too, with its time and memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(
        f"\n{script}: {seconds:.1f} s, {cpu:.1f} s of CPU time, "
        f"peak so far {after.ru_maxrss / 1e6:.2f} GB\n{done.stdout}\n"
    )
    return done.stdout


def peak_bytes() -> int:
    """Largest memory that a script took so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
