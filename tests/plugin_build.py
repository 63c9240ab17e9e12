"""The plugin libraries and their test programs, built by CMake once per session."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# kept between sessions: compiling the kernels is the long part
BUILD_DIR = ROOT / "build" / "plugins"
LOG_FILE, LOCK_FILE = "build.log", "build.lock"
ORT_HEADERS = ROOT / "build" / "headers" / "onnxruntime"  # from scripts/fetch_headers.py


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginBuild:
    """What the build made."""

    folder: Path

    @property
    def library(self) -> Path:
        return self.folder / "libhmar_plugins.so"

    @property
    def ort_library(self) -> Path:
        return self.folder / "libhmar_ort.so"

    @property
    def gqa_harness(self) -> Path:
        return self.folder / "libgqa_harness.so"

    @property
    def test_program(self) -> Path:
        return self.folder / "plugin_test"

    @property
    def fake_nvinfer(self) -> Path:
        return self.folder / "libnvinfer.so.10"

    @property
    def fatbin(self) -> Path:
        return self.folder / "kernels" / "bsa.fatbin"

    @property
    def header(self) -> Path:
        return self.folder / "kernels" / "bsa_kernels.h"


def tensorrt_include_dir() -> Path | None:
    """Folder of NvInferRuntime.h: in the checkout, else of a package that carries it."""
    fetched = ROOT / "build" / "headers" / "tensorrt"
    if (fetched / "NvInferRuntime.h").is_file():
        return fetched
    package = importlib.util.find_spec("kernel_lens")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "include" / "tensorrt"


def has_nvrtc() -> bool:
    """Whether kernels in CUDA C++ can be compiled."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):
        return False
    return True


def missing_tools(include_dir: Path | None) -> list[str]:
    """What the build needs and this machine lacks."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if importlib.util.find_spec("triton") is None:
        missing.append("triton (pip install '.[aot]')")
    if not has_nvrtc():
        missing.append("NVRTC (pip install '.[aot]')")
    if not (shutil.which("fatbinary") or Path("/usr/local/cuda/bin/fatbinary").exists()):
        missing.append("fatbinary (CUDA toolkit)")
    if include_dir is None:
        missing.append("TensorRT headers (in build/headers/tensorrt, or pip install kernel-lens)")
    return missing


def start_plugins() -> subprocess.Popen[bytes]:
    """Begins to build what changed; skips the test that asks if a tool is missing.

    The kernels take minutes, so the session begins with it and goes on with other tests.
    """
    include_dir = tensorrt_include_dir()
    missing = missing_tools(include_dir)
    if missing:
        pytest.skip(f"the plugin library cannot be built here: no {', no '.join(missing)}")
    return start_cmake(
        ROOT / "plugins_trt",
        BUILD_DIR,
        "-DHMAR_BUILD_TESTS=ON",
        f"-DTENSORRT_INCLUDE_DIR={include_dir}",
        f"-DONNXRUNTIME_ROOT={ORT_HEADERS}",
        f"-DPython3_EXECUTABLE={sys.executable}",
    )


def finish_plugins(started: subprocess.Popen[bytes]) -> PluginBuild:
    """What the build made, once it is done."""
    finish_cmake(started, BUILD_DIR)
    return PluginBuild(folder=BUILD_DIR)


def build_ort(name: str, *options: str) -> Path:
    """ONNX Runtime's library for the CPU alone; skips the test that asks if a tool is missing."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if not ORT_HEADERS.is_dir():
        missing.append("ONNX Runtime headers (python scripts/fetch_headers.py)")
    if missing:
        pytest.skip(f"the custom-op library cannot be built here: no {', no '.join(missing)}")
    folder = ROOT / "build" / "tests" / name
    source = ROOT / "plugins_trt" / "ort"
    root = f"-DONNXRUNTIME_ROOT={ORT_HEADERS}"
    finish_cmake(start_cmake(source, folder, root, *options), folder)
    return folder / "libhmar_ort.so"


def start_cmake(source: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Begins to configure and build a project in a folder, or what of it changed."""
    configure = shlex.join(["cmake", "-S", str(source), "-B", str(folder), *options])
    build = shlex.join(["cmake", "--build", str(folder), "--parallel"])
    folder.mkdir(parents=True, exist_ok=True)
    # the workers of one test run take turns; the second finds everything built
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            ["flock", folder / LOCK_FILE, "sh", "-c", f"{configure} && {build}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish_cmake(started: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for a build; a failed one fails the test, with the end of its log."""
    assert started.wait() == 0, (folder / LOG_FILE).read_text()[-8000:]
