"""Plugin libraries, built for the tests in build/tests; only what changed is built again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def cmake_build(source: Path, folder: Path, *options: str) -> None:
    """Configures and builds a CMake project."""
    for command in (["-S", source, "-B", folder, *options], ["--build", folder, "-j2"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, f"cmake {command}:\n{done.stdout}\n{done.stderr}"


def build_ort(name: str, *options: str) -> Path:
    """The custom-op library for the CPU; skips where it cannot be built."""
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs cmake and a C++ compiler")
    headers = ROOT / "build" / "headers" / "onnxruntime"
    if not headers.is_dir():
        pytest.skip("needs ONNX Runtime's headers: python scripts/fetch_headers.py")
    folder = ROOT / "build" / "tests" / name
    source = ROOT / "plugins_trt" / "ort"
    cmake_build(source, folder, f"-DONNXRUNTIME_ROOT={headers}", *options)
    return folder / "libhmar_ort.so"
