"""What tests of compiled kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.backends.cuda import CudaDevice


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    pytest.importorskip("cuda.bindings", reason="no cuda.bindings: pip install cuda-bindings")
    device = CudaDevice()
    yield device
    device.close()
