"""The built plugin library's kernels for this GPU."""

from __future__ import annotations

import pytest

from plugins_trt.loader import PluginError, open_library
from runtime.backends.cuda import CudaDevice
from runtime.backends.kernel_library import KernelLibrary, Part
from runtime.errors import BackendUnavailableError


def open_kernels(part: Part, device: CudaDevice) -> KernelLibrary:
    """Kernels of a part; skips the test that asks if there are none."""
    try:
        return KernelLibrary(open_library("trt").path, part, device)
    except (PluginError, BackendUnavailableError) as error:
        pytest.skip(str(error))
