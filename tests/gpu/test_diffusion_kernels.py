"""The compiled diffusion kernels on a GPU, against the NumPy rule.

    python -m pytest tests/gpu/test_diffusion_kernels.py -v -rs

needs the built plugin library and `cuda.bindings`.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backends.cuda import CudaDevice
from runtime.backends.diffusion_kernels import CudaDiffusionKernels
from runtime.diffusion import diffusion_schedule
from runtime.normals import NOISE, second_word
from tests.gpu.library import open_kernels
from tests.gpu.test_sampling_kernels import OnDevice
from tests.host_device import HostDiffusionKernels

pytestmark = pytest.mark.gpu

SHARED = ("state", "first", "timestep", "held_tokens", "held", "positions", "images", "seed")


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> CudaDiffusionKernels:
    return CudaDiffusionKernels(open_kernels("sampling", device), device.stream)


def arrays(B: int, n: int, C: int, phase: str, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    floats = ("state", "first", "noise", "variance", "held_tokens")
    images = [0, 1 << 40, (1 << 63) + 1][:B]
    return {
        **{name: rng.standard_normal((B, n, C)).astype(np.float32) for name in floats},
        "held": rng.random((B, n)) < 0.5,
        "positions": rng.integers(0, 256, (B, n)).astype(np.int32),
        "images": np.array(images, np.uint64).view(np.int64),
        "seed": np.array([(1 << 63) + 99], np.uint64).view(np.int64),
        "counter": np.array([second_word(NOISE[phase], step, 0)], np.int32),
        "temperature": np.array([0.9], np.float32),
        "timestep": np.array([-1], np.int32),
    }


@pytest.mark.parametrize("has_held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize(("B", "n", "C"), [(1, 1, 16), (3, 3, 16), (2, 256, 16), (3, 37, 4)])
@pytest.mark.parametrize("phase", ["pivot", "dense"])
def test_sampling_steps(
    device: CudaDevice,
    kernels: CudaDiffusionKernels,
    B: int,
    n: int,
    C: int,
    phase: str,
    has_held: bool,
) -> None:
    """A first state, a step with noise and the last one, which has none."""
    schedule, has_variance = diffusion_schedule("100"), phase == "pivot"
    placed = OnDevice(device, arrays(B, n, C, phase, step=5))
    sizes = {"batch": B, "length": n, "groups": C // 4}
    held = {"has_held": has_held, "held_signal": 0.8, "held_noise": 0.6}
    for side, rule in enumerate((kernels, HostDiffusionKernels())):
        addresses = placed.addresses(side)
        common = {name: addresses[name] for name in (*SHARED, "counter")}
        rule.start(**common, **sizes, **held, next_timestep=999)
        outputs = {name: addresses[name] for name in ("noise", "variance", "temperature")}
        for i, draw in ((60, 40), (0, 0)):
            A = float(schedule.signal[i])
            rule.reverse(
                **common, **outputs, **sizes, **held, draw=draw, next_timestep=i,
                has_variance=has_variance,
                x0_from_state=(1 / A) ** 0.5, x0_from_noise=(1 / A - 1) ** 0.5,
                mean_x0=float(schedule.mean_x0[i]), mean_x=float(schedule.mean_x[i]),
                log_upper=float(schedule.log_betas[i]),
                log_lower=float(schedule.posterior_log_variance[i]),
            )  # fmt: skip
    for name in ("first", "state"):
        ours, expected = placed.results(name)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(*placed.results("timestep"))
    placed.close()
