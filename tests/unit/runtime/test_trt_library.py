"""What is said where TensorRT, cuda.bindings or a GPU is missing, and what differs by version."""

from __future__ import annotations

import logging
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtime.backends.cuda import CudaDevice
from runtime.backends.trt_library import (
    TensorRT,
    check_targets,
    configure,
    create_network,
    import_tensorrt,
    installed_flavours,
    library_links,
    make_logger,
)
from runtime.errors import (
    BackendUnavailableError,
    DeviceMemoryError,
    EngineBuildError,
    NoDeviceError,
)


def module(version: str, **members: Any) -> ModuleType:
    fake = ModuleType("tensorrt")
    fake.__dict__.update(__version__=version, **members)
    return fake


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.backends.trt_library.installed_flavours", list)
    with pytest.raises(BackendUnavailableError, match="pip install tensorrt-rtx-cu13"):
        import_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match="tensorrt cannot be imported"):
        import_tensorrt("tensorrt")
    assert "tensorrt" not in installed_flavours()


def test_an_old_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module("10.12.0.36"))
    with pytest.raises(BackendUnavailableError, match=r"10\.12\.0\.36 is installed, 10\.13"):
        import_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module("11.0.1.2"))
    assert import_tensorrt("tensorrt").short_name == "trt11.0.1.2"


def test_no_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"cuda\.bindings .*pip install cuda-python"):
        CudaDevice()


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        cudaError_t=Status,
        cudaSetDevice=lambda index: (Status.cudaErrorNoDevice,),
        cudaGetErrorString=lambda status: (Status.cudaSuccess, b"no CUDA-capable device"),
    )
    monkeypatch.setattr("runtime.backends.cuda.import_cuda", lambda: cuda)
    with pytest.raises(NoDeviceError, match="cudaErrorNoDevice: no CUDA-capable device"):
        CudaDevice()


def test_out_of_memory_is_told_from_other_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    ok = Status.cudaSuccess
    cuda = SimpleNamespace(
        cudaError_t=Status,
        cudaStreamNonBlocking=1,
        cudaSetDevice=lambda index: (ok,),
        cudaStreamCreateWithFlags=lambda flags: (ok, 5),
        cudaMalloc=lambda nbytes: (Status.cudaErrorMemoryAllocation, 0),
        cudaMemGetInfo=lambda: (Status.cudaErrorNoDevice, 0, 0),
        cudaGetErrorString=lambda status: (ok, b"out of memory"),
    )
    monkeypatch.setattr("runtime.backends.cuda.import_cuda", lambda: cuda)
    device = CudaDevice()
    with pytest.raises(DeviceMemoryError, match=r"cudaMalloc \(9\.0 MB\): .*out of memory"):
        device.allocate(9_000_000)
    with pytest.raises(NoDeviceError):
        device.memory()


def test_events_are_timed_and_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    ok, calls, handles = Status.cudaSuccess, list[tuple[str, int]](), iter((1, 2))
    cuda = SimpleNamespace(
        cudaError_t=Status,
        cudaStreamNonBlocking=1,
        cudaSetDevice=lambda index: (ok,),
        cudaStreamCreateWithFlags=lambda flags: (ok, 5),
        cudaEventCreate=lambda: (ok, next(handles)),
        cudaEventRecord=lambda event, stream: (calls.append((f"record on {stream}", event)), ok)[
            1:
        ],
        cudaEventSynchronize=lambda event: (calls.append(("wait", event)), ok)[1:],
        cudaEventElapsedTime=lambda start, stop: (ok, 10.0 * start + stop),
        cudaEventDestroy=lambda event: (calls.append(("destroy", event)), ok)[1:],
    )
    monkeypatch.setattr("runtime.backends.cuda.import_cuda", lambda: cuda)
    device = CudaDevice()
    start, stop = device.record(), device.record()
    assert device.elapsed_ms(start, stop) == 12.0
    del start
    assert calls == [("record on 5", 1), ("record on 5", 2), ("wait", 2), ("destroy", 1)]


def test_full_tensorrt_builds_for_its_own_gpu() -> None:
    library = TensorRT(module("10.14.1"), "tensorrt")
    check_targets(library, ("sm90",), "sm90")
    with pytest.raises(EngineBuildError, match=r"\(none here\), not for sm80; build on the target"):
        check_targets(library, ("sm80",), None)


@pytest.mark.parametrize(("flag", "expected"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)])
def test_networks_are_strongly_typed(flag: dict[str, int], expected: int) -> None:
    library = TensorRT(
        module("11.0", NetworkDefinitionCreationFlag=SimpleNamespace(**flag)), "tensorrt"
    )
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert create_network(library, builder) == expected


class Config:
    """Keeps what is set."""

    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.limits: dict[str, int] = {}
        self.targets: dict[int, str] = {}
        self.num_compute_capabilities = 0

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.targets[index] = capability


def test_settings_of_a_build() -> None:
    library = TensorRT(
        module(
            "1.7.1",
            BuilderFlag=SimpleNamespace(TF32="tf32"),
            MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
            ComputeCapability=SimpleNamespace(__members__={"SM80": "A100", "SM120": "B200"}),
        ),
        "tensorrt_rtx",
    )
    assert library.targets() == ("sm80", "sm120")
    config = Config()
    configure(library, config, ("sm80", "sm120"), 1 << 20)
    assert config.cleared == ["tf32"] and config.limits == {"workspace": 1 << 20}
    assert config.num_compute_capabilities == 2 and config.targets == {0: "A100", 1: "B200"}
    config = Config()
    configure(library, config, None, None)
    assert not config.limits and not config.num_compute_capabilities


def test_messages_of_tensorrt_go_to_our_log() -> None:

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("runtime.backends.trt_library")
    log.addHandler(handler)
    try:
        messages: list[str] = []
        bridge = make_logger(TensorRT(module("10.14", ILogger=ILogger), "tensorrt"), messages)
        bridge.log(ILogger.ERROR, "no such layer")
        bridge.log(ILogger.WARNING, "slow layer")
        bridge.log(ILogger.VERBOSE, "tactic 1")
    finally:
        log.removeHandler(handler)
    assert messages == ["no such layer", "slow layer"]
    assert [(r.levelno, r.getMessage()) for r in records] == [
        (logging.ERROR, "no such layer"),
        (logging.WARNING, "slow layer"),
    ]


def test_links_for_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of TensorRT-RTX opens libtensorrt_rtx.so, which its wheel lacks."""
    package = tmp_path / "tensorrt_rtx_libs"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"):
        (package / name).touch()
    monkeypatch.delitem(sys.modules, "tensorrt_rtx_libs", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    links = tmp_path / "links"
    links.mkdir()
    assert library_links("tensorrt_rtx", links) == links
    assert (links / "libtensorrt_rtx.so").resolve() == package / "libtensorrt_rtx.so.1"
    assert library_links("tensorrt", links) is None
