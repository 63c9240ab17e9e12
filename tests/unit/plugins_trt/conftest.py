"""The custom-op library, built once for the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def cmake_build(source: Path, folder: Path, *options: str) -> None:
    """Configures and builds, again only what changed."""
    for command in (["-S", source, "-B", folder, *options], ["--build", folder, "-j2"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, f"cmake {command}:\n{done.stdout}\n{done.stderr}"


def build_ort(name: str, *options: str) -> Path:
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs cmake and a C++ compiler")
    headers = ROOT / "build" / "headers" / "onnxruntime"
    if not headers.is_dir():
        pytest.skip("needs ONNX Runtime's headers: python scripts/fetch_headers.py")
    folder = ROOT / "build" / "tests" / name
    source = ROOT / "plugins_trt" / "ort"
    cmake_build(source, folder, f"-DONNXRUNTIME_ROOT={headers}", *options)
    return folder / "libhmar_ort.so"


@pytest.fixture(scope="session")
def ort_library() -> Path:
    return build_ort("ort")


@pytest.fixture(scope="session")
def ort_library_without_avx2() -> Path:
    return build_ort("ort-baseline", "-DHMAR_CPU_AVX2=OFF")
