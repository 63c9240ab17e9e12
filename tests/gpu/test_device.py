"""Copies to and from a GPU.

    python -m pytest tests/gpu/test_device.py -v

needs `cuda.bindings` and a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends.cuda import PIECE_NBYTES, CudaDevice

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "nbytes", [1, PIECE_NBYTES, PIECE_NBYTES + 1, 2 * PIECE_NBYTES, 5 * PIECE_NBYTES - 3]
)
def test_what_goes_up_comes_down(device: CudaDevice, nbytes: int) -> None:
    sent = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    address = device.allocate(nbytes)
    device.upload(address, sent)
    for _ in range(2):
        received = np.zeros(nbytes + 16, np.uint8)
        device.download(received[:nbytes], address)
        np.testing.assert_array_equal(received[:nbytes], sent)
        assert not received[nbytes:].any()
    device.free(address)
