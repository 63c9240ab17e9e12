"""An engine's contexts, bindings and compiled kernels, with a TensorRT that keeps its calls."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtime.backends.trt_engine import TensorRTEngine
from runtime.backends.trt_library import Flavour, TensorRT
from runtime.errors import BackendError, DeviceMemoryError

PROFILES = ({"N": 2, "l": 1}, {"N": 2, "l": 4})
SHAPES = {"x": (2, 4, 8), "unused": (2,)}
ADDRESSES = {"x": 1000, "unused": 2000, "logits": 3000}


class FakeContext:
    def __init__(self, config: Any) -> None:
        self.config, self.calls = config, list[Any]()
        self.takes_shapes = self.runs = True

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.calls.append(("memory", address, nbytes))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.calls.append(("profile", index, stream))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return self.takes_shapes

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(("address", name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("run", stream))
        return self.runs


class FakeCache:
    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, data: bytes) -> bool:
        self.held = data
        return True

    def serialize(self) -> bytes:
        return self.held + b"+"


class FakeEngine:
    num_io_tensors = 2

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return (256, 512)[profile]

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []
        self.makes_contexts = True

    def get_tensor_name(self, index: int) -> str:
        return ("x", "logits")[index]

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(create_runtime_cache=FakeCache)
        config.set_execution_context_allocation_strategy = lambda s: vars(config).update(strategy=s)
        config.set_runtime_cache = lambda cache: vars(config).update(cache=cache)
        return config

    def create_execution_context(self, config: Any) -> FakeContext | None:
        if not self.makes_contexts:
            return None
        self.contexts.append(FakeContext(config))
        return self.contexts[-1]


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


def make(
    fake: FakeEngine | None,
    folder: Path,
    flavour: Flavour = "tensorrt_rtx",
    messages: tuple[str, ...] = (),
) -> TensorRTEngine:
    trt = ModuleType(flavour)
    trt.__dict__.update(
        __version__="1.4.0",
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        IProfiler=object,
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: fake)
    library, cache = TensorRT(trt, flavour), folder / "trunk.sm90.kernels"
    return TensorRTEngine(library, runtime, "trunk", b"plan", PROFILES, cache, messages)


def run(engine: TensorRTEngine, profile: int = 1, **changes: int) -> None:
    engine.execute(profile, SHAPES, {**ADDRESSES, **changes}, 5000, 7)


def test_a_context_is_planned_once_and_rebound_where_addresses_change(
    fake: FakeEngine, tmp_path: Path
) -> None:
    engine = make(fake, tmp_path)
    run(engine)
    (context,) = fake.contexts
    assert context.calls == [
        ("profile", 1, 7),
        ("memory", 5000, 512),
        ("shape", "x", (2, 4, 8)),
        ("address", "x", 1000),
        ("address", "logits", 3000),
        ("run", 7),
    ]
    assert context.config.strategy == "user"
    context.calls.clear()
    run(engine)
    run(engine, x=1001)
    assert context.calls == [("run", 7), ("address", "x", 1001), ("run", 7)]
    run(engine, profile=0)
    assert len(fake.contexts) == 2


def test_an_interrupted_binding_is_made_again(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(fake, tmp_path)
    run(engine)
    (context,) = fake.contexts

    def interrupted(name: str, address: int) -> bool:
        FakeContext.set_tensor_address(context, name, address)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(context, "set_tensor_address", interrupted)
        run(engine, x=1001)
    context.calls.clear()
    run(engine)
    assert context.calls == [("address", "x", 1000), ("run", 7)]


def test_compiled_kernels_are_kept_in_a_file(fake: FakeEngine, tmp_path: Path) -> None:
    for expected in (b"+", b"++"):
        engine = make(fake, tmp_path)
        run(engine)
        engine.close()
        assert [p.name for p in tmp_path.iterdir()] == ["trunk.sm90.kernels"]
        assert (tmp_path / "trunk.sm90.kernels").read_bytes() == expected


def test_an_engine_that_never_ran_writes_nothing(fake: FakeEngine, tmp_path: Path) -> None:
    make(fake, tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_error(fake: FakeEngine, tmp_path: Path) -> None:
    engine = make(fake, tmp_path / "missing")
    run(engine)
    engine.close()


def test_full_tensorrt_compiles_nothing_at_load(fake: FakeEngine, tmp_path: Path) -> None:
    engine = make(fake, tmp_path, "tensorrt")
    run(engine)
    assert fake.contexts[0].config == "user"
    engine.close()
    assert not list(tmp_path.iterdir())


def test_out_of_memory_is_told_from_other_failures(fake: FakeEngine, tmp_path: Path) -> None:
    messages = ("Error Code 2: OutOfMemory (Requested size was 7 bytes.)",)
    with pytest.raises(DeviceMemoryError, match=r"trunk: no room for a plan of .*OutOfMemory"):
        make(None, tmp_path, messages=messages)
    fake.makes_contexts = False
    with pytest.raises(DeviceMemoryError, match="trunk: no room for a context"):
        run(make(fake, tmp_path, messages=("Cuda Runtime (out of memory)",)))


def test_failures_name_the_engine_and_quote_the_log(fake: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"trunk: tensorrt_rtx 1\.4\.0 cannot load .*--force"):
        make(None, tmp_path)
    fake.makes_contexts = False
    with pytest.raises(BackendError, match=r"cannot make a context .*no kernel.*ort-cpu"):
        run(make(fake, tmp_path, messages=("no kernel for sm90",)))
    fake.makes_contexts = True
    engine = make(fake, tmp_path)
    run(engine)
    fake.contexts[-1].runs = False
    with pytest.raises(BackendError, match="trunk: cannot run"):
        run(engine)


def test_layers_are_reported_for_what_has_run(fake: FakeEngine, tmp_path: Path) -> None:
    engine = make(fake, tmp_path)
    run(engine)
    layers: list[tuple[str, float]] = []
    engine.report_layers(lambda name, ms: layers.append((name, ms)))
    fake.contexts[0].profiler.report_layer_time("matmul", 0.5)
    assert layers == [("matmul", 0.5)]
