"""Hi-MAR's denoisers by the compiled kernels on a GPU, against PyTorch in float32.

    python -m pytest tests/gpu/test_denoiser_engine.py -v -rs

needs the built plugin library, `cuda.bindings`, and an H100 (the library holds these kernels for
compute capability 9.0).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from hmar.config import HIMAR_PRESETS
from hmar.diffusion_head import guided_noise
from runtime.backends.cuda import CudaDevice
from runtime.backends.device_values import BufferPool, DeviceValue
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.planned_engine import DeviceArrays, PlannedEngine
from runtime.bundle import Kind
from runtime.denoiser_plan import DenoiserSizes, denoiser_weights, plan_denoiser
from tests.denoisers import make_denoiser
from tests.gpu.library import open_kernels

pytestmark = pytest.mark.gpu

BASE = HIMAR_PRESETS["himar-base-256"]
TIMESTEPS, WEIGHT = np.array([437, 999, 7], np.int32), 2.5
RMS = 4e-3  # float16 through six blocks
CASES: list[tuple[Kind, int, int]] = [
    ("denoise_pivot", 1, 3), ("denoise_pivot", 32, 2), ("denoise_pivot", 7, 1),
    ("denoise_pivot_unguided", 5, 3), ("denoise_pivot_modulated", 1, 2),
    ("denoise_pivot_modulated", 7, 3), ("denoise_dense", 1, 256), ("denoise_dense", 3, 256),
    ("denoise_dense_unguided", 9, 256),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> KernelLibrary:
    return open_kernels("transformer", device)


@pytest.mark.parametrize(("kind", "images", "length"), CASES)
def test_noise_is_that_of_pytorch(
    device: CudaDevice, kernels: KernelLibrary, kind: Kind, images: int, length: int
) -> None:
    name: Literal["mlp", "dit"] = "mlp" if "pivot" in kind else "dit"
    width, depth = (BASE.mlp_width, BASE.mlp_depth) if name == "mlp" else (BASE.dit_width, 6)
    sizes = DenoiserSizes(
        name=name, width=width, depth=depth, hidden=width if name == "mlp" else 4 * width
    )
    denoiser, stored = make_denoiser(BASE, name)
    halves = 1 if kind.endswith("_unguided") else 2
    # the denoiser in two parts takes the modulations of one of several time steps
    in_two_parts = kind == "denoise_pivot_modulated"
    step = len(TIMESTEPS) - 1 if in_two_parts else 0
    dims = {"B": images, "N": 2 * images, "T": len(TIMESTEPS), "n": length}
    kinds: tuple[Kind, ...] = ("modulate_pivot", kind) if in_two_parts else (kind,)
    plans = [plan_denoiser(sizes, k, dims, length, kernels.table) for k in kinds]
    arrays = denoiser_weights(sizes, lambda tensor: stored[tensor].numpy())
    weights = DeviceArrays(device, arrays, 4 * max(plan.num_arrivals for plan in plans))
    engine = PlannedEngine(kernels, device, [dims] * len(plans), plans, weights, weights.nbytes)
    g = torch.Generator().manual_seed(images)
    x = torch.randn((images, length, 16), generator=g)
    cond = torch.randn((halves * images, length, width), generator=g).half()
    pool = BufferPool(device)

    def upload(array: np.ndarray) -> DeviceValue:
        value = DeviceValue.empty(array.dtype.name, array.shape, pool)
        device.upload(value.buffer.address, np.ascontiguousarray(array))
        return value

    values = {
        "x": upload(x.numpy()),
        "head_cond": upload(cond.numpy()),
        "timestep": upload(TIMESTEPS if in_two_parts else TIMESTEPS[:1]),
        "scale": upload(np.array([WEIGHT], np.float32)),
        "noise": upload(np.full(x.shape, np.nan, np.float32)),
        "variance": upload(np.full(x.shape, np.nan, np.float32)),
    }
    parts = [values]
    if in_two_parts:
        vectors = sizes.num_vectors * width
        shape = len(TIMESTEPS), halves * images, length, vectors
        modulation = upload(np.full(shape, np.nan, np.float16))
        parts = [values | {"modulation": of} for of in (modulation, modulation[step])]
    scratch = upload(np.full(max(plan.nbytes for plan in plans), 0xFF, np.uint8))
    denoiser, time = denoiser.cuda(), torch.from_numpy(TIMESTEPS[step : step + 1]).cuda()
    with torch.inference_mode():
        arguments = x.cuda(), denoiser.time(time), cond.cuda().float()
        expected = (
            guided_noise(denoiser, *arguments, WEIGHT) if halves == 2 else denoiser(*arguments)
        ).cpu()
    for _ in range(2):  # the second call finds counters and scratch memory as the first left them
        for i, part in enumerate(parts):
            addresses = {key: value.buffer.address for key, value in part.items()}
            shapes = {key: value.shape for key, value in part.items()}
            engine.execute(i, shapes, addresses, scratch.buffer.address, device.stream)
        ours = torch.from_numpy(values["noise"].numpy(device))
        error = float((ours - expected[..., :16]).norm() / expected[..., :16].norm())
        assert error < RMS
        if name == "mlp":
            ours = torch.from_numpy(values["variance"].numpy(device))
            error = float((ours - expected[..., 16:]).norm() / expected[..., 16:].norm())
            assert error < RMS
    engine.close()
    pool.close()
