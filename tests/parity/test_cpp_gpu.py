"""Generations of the C++ runtime on a GPU against Python's; driver and kernels are stand-ins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.device_values import BufferPool
from runtime.backends.generation import Generations
from runtime.backends.kernel_engines import planned_engines
from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.backends.tensor_maps import TensorMap
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig, SamplingConfig
from runtime.errors import BackendError
from tests.cpp_build import CppBuild, build_cpp, call
from tests.cpp_gpu import FakeGpu
from tests.cpp_runtime import CppSession, Library, StatusError
from tests.host_device import HostDevice
from tests.host_library import HostLibrary
from tests.recorded import BATCHES


@pytest.fixture(scope="module")
def bundle(recorded_bundle: Path) -> Bundle:
    return Bundle.open(recorded_bundle)


@pytest.fixture(scope="module")
def host(bundle: Bundle) -> HostLibrary:
    return HostLibrary(bundle)


@pytest.fixture(scope="module")
def build() -> CppBuild:
    return build_cpp("cpp")


@pytest.fixture(scope="module")
def gpu(build: CppBuild, host: HostLibrary) -> Iterator[FakeGpu]:
    gpu = FakeGpu(build, host)
    yield gpu
    gpu.close()


@pytest.fixture(scope="module")
def generations(bundle: Bundle, host: HostLibrary) -> Iterator[Generations]:
    """Python's, on the host device."""
    device = HostDevice()
    config = BackendConfig(name="trt", decoder="kernels", transformer="kernels")
    engines = dict(planned_engines(bundle, config, device, BATCHES, host.parts.__getitem__))
    runner = TensorRTRunner(bundle.manifest, engines, device, BATCHES)
    kernels = CudaSamplingKernels(host.parts["sampling"], device.stream)

    def fail(what: str, batch: int, error: Exception) -> Any:
        raise AssertionError(what) from error

    def in_pool(pool: BufferPool) -> TensorRTRunner:
        return runner.in_pool(pool)

    generations = Generations(in_pool, kernels, device, BATCHES, fail)
    yield generations
    generations.close()
    runner.close()


@pytest.mark.parametrize("count", [1, 2], ids=["whole", "padded"])
def test_pixels_and_tokens_are_pythons(
    build: CppBuild, bundle: Bundle, gpu: FakeGpu, generations: Generations, count: int
) -> None:
    sampling = SamplingConfig.defaults(bundle.manifest)
    labels, images, seed = [3, 10][:count], [2**63 + 1, 7][:count], 2**64 - 3
    classes = [label if label < 10 else -1 for label in labels]
    with CppSession(
        Library(build.library), bundle.folder, backend="gpu", plugins=gpu.plugins
    ) as session:
        assert session.backend == "gpu (Fake GPU, sm90)" and session.why_not_gpu == ""
        ours = session.generate(classes, seed=seed, image_index=images)
    if gpu.failure is not None:
        raise gpu.failure
    assert gpu.live == 0 and gpu.violations == 0
    theirs = generations(labels, images, seed, sampling)
    np.testing.assert_array_equal(ours["pixels"], theirs)
    for k, tokens in enumerate(generations.tokens()):
        np.testing.assert_array_equal(ours[f"s{k}_tokens"], tokens[:count])
    expected = (np.clip(ours["image"], 0, 1) * np.float32(255)).round().astype(np.uint8)
    np.testing.assert_array_equal(expected.transpose(0, 2, 3, 1), theirs)


def test_what_no_recording_serves_runs_on_onnxruntime(
    build: CppBuild, bundle: Bundle, gpu: FakeGpu
) -> None:
    library = Library(build.library)
    other = dataclasses.replace(SamplingConfig.defaults(bundle.manifest), cfg=0.0)
    with CppSession(library, bundle.folder) as session:
        expected = session.generate([4], seed=1, sampling=other)["pixels"]
    with CppSession(library, bundle.folder, backend="auto", plugins=gpu.plugins) as session:
        assert session.backend.startswith("gpu")
        ours = session.generate([4], seed=1, sampling=other)["pixels"]
    np.testing.assert_array_equal(ours, expected)
    with CppSession(library, bundle.folder, backend="gpu", plugins=gpu.plugins) as session:
        with pytest.raises(StatusError, match="no recording has this mask schedule") as raised:
            session.generate([4], seed=1, sampling=other)
    assert raised.value.status == "HMAR_UNSUPPORTED"


def test_hmar_generate(build: CppBuild, bundle: Bundle, gpu: FakeGpu, tmp_path: Path) -> None:
    out = tmp_path / "out.ppm"
    printed = call(
        str(build.generate_tool), "--bundle", str(bundle.folder), "--labels", "1,2",
        "--out", str(out), "--backend", "gpu", "--plugins", str(gpu.plugins), "--repeat", "3",
        env={"LD_LIBRARY_PATH": str(build.folder), "HMAR_TEST_RECORDED": str(bundle.folder)},
    )  # fmt: skip
    assert "2 images of 64 px" in printed and "on gpu (Fake GPU, sm90)" in printed
    assert "3 generations: median" in printed
    assert out.read_bytes().startswith(b"P6\n128 64\n255\n")


def test_python_makes_tensor_maps_as_the_driver_takes_them(gpu: FakeGpu) -> None:
    context, address, before = c_void_p(), c_uint64(), gpu.violations
    gpu.cuda.cuInit(0)
    gpu.cuda.cuDevicePrimaryCtxRetain(byref(context), 0)
    gpu.cuda.cuCtxPushCurrent_v2(context)
    gpu.cuda.cuMemAlloc_v2(byref(address), c_size_t(2 * 64 * 10 * 3))
    try:
        for _ in range(8):  # wherever it lies
            made = TensorMap(address.value, [64, 10, 3], [64, 8, 1])
            assert c_uint64.from_address(made.address).value == address.value
        TensorMap(address.value, [32, 60], [32, 256])
        gpu.cuda.fake_cuda_fail(b"cuTensorMapEncodeTiled", 1, 1)
        with pytest.raises(BackendError, match=r"error 1, for sizes \[64, 30\] in boxes of"):
            TensorMap(address.value, [64, 30], [64, 8])
    finally:
        gpu.cuda.fake_cuda_fail(None, 0, 0)
        gpu.cuda.cuMemFree_v2(address)
        gpu.cuda.cuCtxPopCurrent_v2(byref(context))
        gpu.cuda.cuDevicePrimaryCtxRelease_v2(0)
    assert gpu.violations == before
