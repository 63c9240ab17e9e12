"""Modules of the suite that run Triton kernels in its interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_interpreted(module: str) -> Any:
    """What a module prints as JSON; in a process of its own, with Triton's interpreter on."""
    pytest.importorskip("triton", reason="the kernels need Triton: pip install '.[aot]'")
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
