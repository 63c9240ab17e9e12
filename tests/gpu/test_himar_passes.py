"""Hi-MAR's passes by the compiled kernels on a GPU, against PyTorch in float32.

    python -m pytest tests/gpu/test_himar_passes.py -v -rs

needs the built plugin library, `cuda.bindings`, and an H100 (the library holds these kernels for
compute capability 9.0).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hmar.config import HIMAR_PRESETS
from hmar.himar import HiMAR
from runtime.backends.cuda import CudaDevice
from runtime.backends.device_values import BufferPool, DeviceValue
from runtime.backends.kernel_library import KernelLibrary
from runtime.backends.planned_engine import share_weights
from runtime.himar_plan import himar_weights, plan_graph
from tests.denoisers import make_himar
from tests.gpu.library import open_kernels
from tests.himar_passes import Pass, make_pass, sizes_of

pytestmark = pytest.mark.gpu

RMS = 6e-3  # float16 through 24 blocks
CASES = [
    Pass("pivot", 2, 0, 1), Pass("pivot", 1, 13, 2), Pass("pivot", 2, 61, 3),
    Pass("pivot", 7, 30, 2), Pass("pivot", 64, 62, 2),
    Pass("dense", 2, 0), Pass("dense", 1, 101), Pass("dense", 6, 236), Pass("dense", 64, 255),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> KernelLibrary:
    return open_kernels("transformer", device)


@pytest.fixture(scope="module")
def model() -> tuple[HiMAR, dict[str, Tensor]]:
    """Sizes of the published base model; the module is on the GPU, the tensors are not."""
    model, stored = make_himar(HIMAR_PRESETS["himar-base-256"])
    return model.cuda(), stored


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_those_of_pytorch(
    device: CudaDevice,
    kernels: KernelLibrary,
    model: tuple[HiMAR, dict[str, Tensor]],
    case: Pass,
) -> None:
    reference, stored = model
    sizes = sizes_of(reference)
    plan = plan_graph(sizes, case.phase, case.images, case.known, case.predicted, kernels.table)
    arrays = himar_weights(sizes, lambda tensor: stored[tensor].numpy())
    planned = {case.phase: ([{"N": case.images}], [plan])}
    (engine,) = share_weights(planned, kernels, device, arrays).values()
    feeds, expected = make_pass(reference, case)
    pool = BufferPool(device)

    def upload(array: np.ndarray) -> DeviceValue:
        value = DeviceValue.empty(array.dtype.name, array.shape, pool)
        device.upload(value.buffer.address, np.ascontiguousarray(array))
        return value

    outputs = {name: upload(np.full(of.shape, np.nan, np.float16)) for name, of in expected.items()}
    values = {name: upload(tensor.numpy()) for name, tensor in feeds.items()} | outputs
    addresses = {name: value.buffer.address for name, value in values.items()}
    shapes = {name: value.shape for name, value in values.items()}
    scratch = upload(np.full(plan.nbytes, 0xFF, np.uint8))
    for _ in range(2):  # the second call finds counters and scratch memory as the first left them
        engine.execute(0, shapes, addresses, scratch.buffer.address, device.stream)
        for name, of in expected.items():
            ours = torch.from_numpy(outputs[name].numpy(device)).float()
            assert float((ours - of).norm() / of.norm()) < RMS, name
    engine.close()
    pool.close()
