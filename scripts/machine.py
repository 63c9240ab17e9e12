"""What a benchmark ran on: versions, devices, the commit, and memory in use."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.backends.cuda import import_cuda
from runtime.errors import BackendUnavailableError

PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"),
    *("cuda-bindings", "torch", "triton"),
)
ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, str]:
    """Versions of what is installed, the processors, and the commit of this checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "gpu": gpu_name() or "none",
        "commit": _commit(),
    }


def gpu_name() -> str | None:
    """Name of the first CUDA GPU, None where there is none or no `cuda.bindings`."""
    properties = _cuda("cudaGetDeviceProperties", 0)
    return properties[0].name.decode() if properties else None


def device_bytes() -> int | None:
    """GPU memory in use, by all processes; None without a GPU."""
    memory = _cuda("cudaMemGetInfo")
    return int(memory[1]) - int(memory[0]) if memory else None


def host_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cuda(function: str, *arguments: Any) -> list[Any]:
    """Results of a call to the CUDA runtime, [] where it cannot be made."""
    try:
        cuda = import_cuda()
    except BackendUnavailableError:
        return []
    status, *results = getattr(cuda, function)(*arguments)
    return results if status == cuda.cudaError_t.cudaSuccess else []


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
