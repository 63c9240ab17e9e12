"""The compiled sampling kernels on a GPU, against the NumPy rule.

    python -m pytest tests/gpu/test_sampling_kernels.py -v -rs

needs the built plugin library and `cuda.bindings`.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends.cuda import CudaDevice
from runtime.backends.device_values import BufferPool, DeviceValue
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.trajectory import to_uint8
from tests.gpu.library import open_kernels
from tests.host_device import HostDevice, HostKernels

pytestmark = pytest.mark.gpu

NUM_SCALES, SCALE_IDX = 10, 4
SETTINGS = {
    "default": (1.5, 900, 0.96),
    "plain": (2.0, 0, 0.0),
    "top-k": (1.5, 20, 0.0),
    "top-p": (4.0, 0, 0.5),
    "one": (1.0, 1, 0.3),
}


class OnDevice:
    """Arrays on the GPU beside the same arrays in host memory."""

    def __init__(self, device: CudaDevice, arrays: dict[str, np.ndarray]) -> None:
        self._device, self._host = device, HostDevice()
        self._pools = BufferPool(device), BufferPool(self._host)
        self.values = {
            name: [DeviceValue.empty(a.dtype.name, a.shape, pool) for pool in self._pools]
            for name, a in arrays.items()
        }
        for name, array in arrays.items():
            for value, place in zip(self.values[name], (device, self._host), strict=True):
                place.upload(value.buffer.address, np.ascontiguousarray(array))

    def addresses(self, side: int) -> dict[str, int]:
        return {name: pair[side].buffer.address for name, pair in self.values.items()}

    def results(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        gpu, host = self.values[name]
        return gpu.numpy(self._device), host.numpy(self._host)

    def close(self) -> None:
        self.values.clear()
        for pool in self._pools:
            pool.close()


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> CudaSamplingKernels:
    return CudaSamplingKernels(open_kernels("sampling", device), device.stream)


@pytest.mark.parametrize("is_guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize("pass_idx", [0, 3])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocab", [50, 2048, 4096, 5000])
def test_draws(
    device: CudaDevice,
    kernels: CudaSamplingKernels,
    vocab: int,
    settings: str,
    pass_idx: int,
    is_guided: bool,
) -> None:
    rng = np.random.default_rng(vocab + pass_idx)
    B, l = 3, 37
    cfg, top_k, top_p = SETTINGS[settings]
    top_k = min(top_k, vocab)
    arrays = OnDevice(
        device,
        {
            "logits": rng.normal(scale=2, size=((1 + is_guided) * B, l, vocab)).astype(np.float32),
            "tokens": np.full((B, l), -1, np.int32),
            "confidences": np.full((B, l), np.nan, np.float32),
            "token_mask": rng.random((B, l)) < 0.6,
            "settings": np.array([cfg, top_k, top_p]),
            "seed": np.array([(1 << 63) + 99], np.uint64).view(np.int64),
            "images": np.array([0, 1 << 40, (1 << 63) + 1], np.uint64).view(np.int64),
        },
    )
    for side, rule in enumerate((kernels, HostKernels())):
        rule.draw(
            **arrays.addresses(side),
            **{"batch": B, "length": l, "vocab": vocab, "scale_idx": SCALE_IDX},
            **{"num_scales": NUM_SCALES, "pass_idx": pass_idx, "is_guided": is_guided},
        )
    ours, expected = arrays.results("tokens")
    np.testing.assert_array_equal(ours, expected)
    ours, expected = arrays.results("confidences")
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    arrays.close()


@pytest.mark.parametrize("length", [4, 36, 169, 256, 1024, 4096])
def test_selections(device: CudaDevice, kernels: CudaSamplingKernels, length: int) -> None:
    rng = np.random.default_rng(length)
    B = 3
    first = int(length * 0.8)
    arrays = {
        "confidences": np.round(rng.random((B, length)) * 50).astype(np.float32),  # with ties
        "candidates": np.full((B, length), -1, np.int32),
        "selected": np.full((B, length), -1, np.int32),
        "token_mask": np.ones((B, length), np.bool_),
    }
    for num_candidates, count in ((length, first), (first, first // 2), (first // 2, 1)):
        placed = OnDevice(device, arrays)
        for side, rule in enumerate((kernels, HostKernels())):
            rule.select(
                **placed.addresses(side),
                **{"batch": B, "length": length, "num_candidates": num_candidates},
                **{"count": count, "is_first": num_candidates == length},
            )
        ours, expected = placed.results("selected")
        np.testing.assert_array_equal(ours[:, :count], expected[:, :count])
        np.testing.assert_array_equal(*placed.results("token_mask"))
        placed.close()
        arrays["candidates"] = expected


def test_pixels(device: CudaDevice, kernels: CudaSamplingKernels) -> None:
    side, rng = 48, np.random.default_rng(0)
    image = rng.random((2, 3, side, side)).astype(np.float32)
    image[0, 0, 0, :4] = 0.0, 1.0, 0.5 / 255, 1.5 / 255  # ties go to the even number
    arrays = OnDevice(device, {"image": image, "pixels": np.full((2, side, side, 3), 7, np.uint8)})
    kernels.to_uint8(**arrays.addresses(0), batch=2, side=side)
    ours, _ = arrays.results("pixels")
    np.testing.assert_array_equal(ours, to_uint8(image))
    arrays.close()
