"""libhmar_runtime, its tools and its tests, built by CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpp_runtime import onnxruntime_library
from tests.plugin_build import ORT_HEADERS, ROOT, finish_cmake, start_cmake, tensorrt_include_dir

SOURCE = ROOT / "runtime" / "cpp"
# one translation unit per target: a third of the time that the files take one by one
ONE_UNIT = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=99")


@dataclass(frozen=True, slots=True)
class CppBuild:
    """A folder that CMake built."""

    folder: Path

    @property
    def library(self) -> Path:
        return self.folder / "libhmar_runtime.so"

    @property
    def fake_tensorrt(self) -> Path:
        """Skips the test that asks where it was not built."""
        path = self.folder / "libfake_tensorrt.so"
        if not path.exists():
            pytest.skip("no headers of TensorRT and CUDA")
        return path

    @property
    def generate_tool(self) -> Path:
        return self.folder / "hmar-generate"

    def install(self, prefix: Path) -> None:
        """Installs library, headers, packages and tool."""
        call("cmake", "--install", str(self.folder), "--prefix", str(prefix), "--strip")

    def test(self, bundle: Path, recorded: Path, engines: Sequence[Path]) -> None:
        """Runs CTest on a bundle, one with recordings, and some whose recordings run engines.

        None of its tests may be skipped.
        """
        output = call(
            "ctest", "--test-dir", str(self.folder), "--output-on-failure",
            env={"HMAR_TEST_BUNDLE": str(bundle), "HMAR_TEST_RECORDED": str(recorded),
                 "HMAR_TEST_ENGINES": ":".join(map(str, engines)),
                 "HMAR_TEST_ONNXRUNTIME": str(onnxruntime_library())},
        )  # fmt: skip
        assert "100% tests passed" in output and "Skipped" not in output, output


def call(*command: str, env: Mapping[str, str] | None = None) -> str:
    """What a command prints, on both streams; it must succeed."""
    done = subprocess.run(
        command, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text
    return text


def build_cpp(name: str, *options: str) -> CppBuild:
    """The C++ runtime; skips the test that asks if a tool is missing."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if not (ORT_HEADERS.parent / "nlohmann").is_dir() or not ORT_HEADERS.is_dir():
        missing.append("headers of ONNX Runtime and JSON (python scripts/fetch_headers.py)")
    if onnxruntime_library() is None:
        missing.append("libonnxruntime.so in Python's onnxruntime package")
    if missing:
        pytest.skip(f"the C++ runtime cannot be built here: no {', no '.join(missing)}")
    folder = ROOT / "build" / "tests" / name
    headers = tensorrt_include_dir()  # without them, recordings run no engines
    if headers is not None:
        options = (f"-DTENSORRT_INCLUDE_DIR={headers}", *options)
    finish_cmake(start_cmake(SOURCE, folder, "-DHMAR_BUILD_TESTS=ON", *ONE_UNIT, *options), folder)
    return CppBuild(folder)
