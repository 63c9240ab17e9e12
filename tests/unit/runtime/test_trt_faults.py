"""Loading engines that are damaged, do not fit or find no room: what is said; all is freed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plugins_trt.loader import Library, PluginNotFoundError
from runtime.backends import kernel_engines, trt, trt_folder
from runtime.backends.placement import load_runner
from runtime.backends.trt import TensorRTRunner
from runtime.backends.trt_build import BuildJob, BuildReport
from runtime.backends.trt_library import TensorRT
from runtime.bundle import Bundle, FileSpec
from runtime.config import BackendConfig
from runtime.engine_cache import build_engines
from runtime.engine_plan import EngineOptions
from runtime.engine_target import Target
from runtime.errors import (
    BackendError,
    BackendUnavailableError,
    DeviceMemoryError,
    EngineIncompatibleError,
)
from tests.host_device import HostDevice
from tests.unit.runtime.manifests import manifest

TARGET = Target(flavour="tensorrt_rtx", version="1.7.1", gpus=("sm89",), is_named=True)
PLUGIN = dataclasses.replace(TARGET, attention="plugin 0.1.0", plugin=Path("libhmar_plugins.so"))
OPTIONS = EngineOptions(batches=(1, 8), layout="per-scale")
PLAN_NBYTES = 2_000_000
UNCHECKED = BackendConfig(name="trt", check_weights=False)


def write_plan(job: BuildJob) -> BuildReport:
    Path(job.plan).write_bytes(Path(job.graph).stem.ljust(PLAN_NBYTES).encode())
    layers = {"PLUGIN_V3": 1} if job.plugin else {}
    return BuildReport(error="", messages=(), layers=layers, activation_nbytes=None, seconds=0.1)


class FakeEngine:
    num_io_tensors = 0

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 3_000_000


class Machine:
    """A GPU and a TensorRT that load plans starting with a graph's name, up to `room` plans."""

    def __init__(self) -> None:
        self.version, self.gpu, self.total_nbytes, self.room = "1.7.1", "sm89", 1 << 30, 100
        self.device = HostDevice()
        self.closed: list[str] = []

    def make_device(self) -> HostDevice:
        self.device = HostDevice(self.total_nbytes)
        self.device.gpu = self.gpu  # type: ignore[attr-defined]
        return self.device

    def import_tensorrt(self, flavour: str | None) -> TensorRT:
        module = ModuleType("tensorrt_rtx")
        module.__dict__.update(__version__=self.version, Runtime=lambda log: _Runtime(self, log))
        return TensorRT(module, "tensorrt_rtx")


class _Runtime:
    def __init__(self, machine: Machine, messages: list[str]) -> None:
        self.machine, self.messages = machine, messages

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if not plan[:1].isalpha():
            self.messages.append("Magic tag does not match")
            return None
        if not self.machine.room:
            self.messages.append("Error Code 2: OutOfMemory (Requested size was 7 bytes.)")
            return None
        self.machine.room -= 1
        return FakeEngine()


def no_library(kind: str) -> Library:
    raise PluginNotFoundError("libhmar_plugins.so: not found")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(trt_folder, "installed_flavours", lambda: ["tensorrt_rtx"])
    monkeypatch.setattr(trt_folder, "import_tensorrt", machine.import_tensorrt)
    monkeypatch.setattr(trt, "CudaDevice", machine.make_device)
    monkeypatch.setattr(trt_folder, "make_logger", lambda library, messages: messages)
    for module in (trt, kernel_engines):
        monkeypatch.setattr(module, "open_library", no_library)

    class Recorded(trt_folder.TensorRTEngine):
        def close(self) -> None:
            super().close()
            machine.closed.append(self.name)

    monkeypatch.setattr(trt_folder, "TensorRTEngine", Recorded)
    return machine


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = Bundle(tmp_path, manifest())
    build_engines(bundle, TARGET, OPTIONS, build=write_plan)
    return bundle


def plan_of(bundle: Bundle, graph: str) -> Path:
    (path,) = bundle.folder.glob(f"engines/*/{graph}.plan")
    return path


def assert_all_is_freed(machine: Machine, engines: int) -> None:
    assert machine.device.is_closed and not machine.device.blocks
    assert len(machine.closed) == engines


def test_engines_that_fit_are_loaded_and_closed(bundle: Bundle, machine: Machine) -> None:
    runner = TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert runner.max_batch == 8 and not machine.closed and not machine.device.is_closed
    runner.close()
    assert_all_is_freed(machine, len(bundle.manifest.graphs))


@pytest.mark.parametrize(
    ("damage", "config", "error", "message"),
    [
        (
            lambda plan: b"\0" + plan[1:],
            BackendConfig(name="trt"),
            EngineIncompatibleError,
            r"decode\.plan: damaged: sha256 .*--force",
        ),
        (lambda plan: plan[:-1], UNCHECKED, EngineIncompatibleError, "damaged: 1999999 bytes"),
        (
            lambda plan: b"\0" + plan[1:],
            UNCHECKED,
            BackendError,
            r"engine decode: tensorrt_rtx 1\.7\.1 cannot load .*Magic tag .*--force",
        ),
    ],
    ids=("a bit", "cut", "a bit, unchecked"),
)
def test_a_damaged_plan(
    bundle: Bundle,
    machine: Machine,
    damage: Callable[[bytes], bytes],
    config: BackendConfig,
    error: type[BackendError],
    message: str,
) -> None:
    path = plan_of(bundle, "decode")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(error, match=message):
        TensorRTRunner.load(bundle, config)
    assert_all_is_freed(machine, list(bundle.manifest.graphs).index("decode"))


def other_graph(bundle: Bundle) -> Bundle:
    graphs = dict(bundle.manifest.graphs)
    graphs["decode"] = dataclasses.replace(graphs["decode"], sha256="2" * 64)
    return Bundle(bundle.folder, manifest(graphs=graphs))


def other_weights(bundle: Bundle) -> Bundle:
    weights = FileSpec(file="graphs/weights.bin", sha256="1" * 64, nbytes=64)
    return Bundle(bundle.folder, manifest(weights=weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "sm90"}, "built for sm89, this GPU is sm90"),
        ({"version": "1.4.0"}, r"built with tensorrt_rtx 1\.7\.1, here is tensorrt_rtx 1\.4\.0"),
        (other_graph, r"built from other graphs than the bundle now holds \(decode\)"),
        (other_weights, "built from other weights than the bundle now holds"),
    ],
    ids=("GPU", "TensorRT", "graph", "weights"),
)
def test_engines_of_another_machine_or_bundle(
    bundle: Bundle, machine: Machine, change: Any, message: str
) -> None:
    if isinstance(change, dict):
        vars(machine).update(change)
    else:
        bundle = change(bundle)
    with pytest.raises(EngineIncompatibleError, match=rf"{message}.*build_engines\.py --bundle"):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert_all_is_freed(machine, 0)


def test_no_room_for_a_plan(bundle: Bundle, machine: Machine) -> None:
    machine.room, machine.total_nbytes = 2, 77_000_000
    message = (
        r"engine quant0: no room for a plan of 2 MB .*OutOfMemory.*; loaded are 4 MB of weights, "
        r"3 MB of activations and 0 MB of buffers, free are 77 of 77 MB, all plans have 16 MB; "
        r"free the GPU's memory, load the pipeline with max_batch below 8, or build .*--batch\)"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert_all_is_freed(machine, 2)


def test_no_room_for_activations(bundle: Bundle, machine: Machine) -> None:
    machine.total_nbytes = 2_000_000
    with pytest.raises(DeviceMemoryError, match=r"3\.0 MB.*loaded are 16 MB .*3 MB of activations"):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert_all_is_freed(machine, len(bundle.manifest.graphs))


def test_the_plugin_library_is_missing(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(bundle, PLUGIN, OPTIONS, build=write_plan, force=True)

    def missing(library: TensorRT) -> Library:
        raise BackendUnavailableError("libhmar_plugins.so: not found")

    monkeypatch.setattr(trt_folder, "load_plugins", missing)
    with pytest.raises(
        BackendUnavailableError, match=r"its engines hold the attention plugin 0\.1\.0: .*not found"
    ):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert_all_is_freed(machine, 0)


def test_a_plugin_library_of_another_version(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(bundle, PLUGIN, OPTIONS, build=write_plan, force=True)
    other = Library(path=Path("libhmar_plugins.so"), version="0.2.0", architectures=(89,))
    monkeypatch.setattr(trt_folder, "load_plugins", lambda library: other)
    with pytest.raises(
        EngineIncompatibleError, match=r"plugin 0\.1\.0, .*\.so is version 0\.2\.0; .*--force"
    ):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    assert_all_is_freed(machine, 0)


def test_the_plugin_is_asked_for_and_the_engines_lack_it(bundle: Bundle, machine: Machine) -> None:
    with pytest.raises(
        EngineIncompatibleError, match=r"run the function body; .*--attention plugin"
    ):
        TensorRTRunner.load(bundle, BackendConfig(name="trt", attention="plugin"))
    assert_all_is_freed(machine, 0)


class FakeDecoder:
    profiles, plan_nbytes, activation_nbytes = ({"B": 1}, {"B": 8}), 1_000_000, (5, 5_000_000)
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("kind", ["auto", "kernels"])
def test_the_decoder_is_kernels_where_there_are_some(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    decoder, opened = FakeDecoder(), list[Any]()
    library = Library(path=Path("libhmar_plugins.so"), version="0.1.0", architectures=(89,))
    for module in (trt, kernel_engines):
        monkeypatch.setattr(module, "open_library", lambda kind: library)
        monkeypatch.setattr(module, "KernelLibrary", lambda path, part, device: part)
    monkeypatch.setattr(trt, "CudaSamplingKernels", lambda kernels, stream: None)

    def engines(*arguments: Any) -> dict[str, FakeDecoder]:
        opened.append(arguments)
        return {"decode": decoder}

    monkeypatch.setattr(kernel_engines, "decoder_engines", engines)
    config = BackendConfig(name="trt", decoder=kind, transformer="engine")
    runner = TensorRTRunner.load(bundle, config)
    assert opened == [(bundle, "decoder", machine.device, [1, 8])]
    runner.close()
    assert decoder.is_closed and "decode" not in machine.closed
    assert_all_is_freed(machine, len(bundle.manifest.graphs) - 1)


def test_a_transformer_without_kernels_frees_what_is_loaded(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(path=Path("libhmar_plugins.so"), version="0.1.0", architectures=(89,))
    glue, error = FakeDecoder(), BackendUnavailableError("the library has no transformer kernel")
    monkeypatch.setattr(kernel_engines, "open_library", lambda kind: library)
    monkeypatch.setattr(kernel_engines, "KernelLibrary", lambda path, part, device: part)
    monkeypatch.setattr(kernel_engines, "glue_engines", lambda *arguments: {"cond": glue})

    def refuse(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(kernel_engines, "transformer_engines", refuse)
    config = BackendConfig(name="trt", decoder="engine", transformer="kernels")
    with pytest.raises(BackendUnavailableError, match=r'transformer="kernels" .*: the library has'):
        TensorRTRunner.load(bundle, config)
    assert glue.is_closed
    assert_all_is_freed(machine, 0)


@pytest.mark.parametrize(
    "config",
    [
        BackendConfig(name="trt"),
        BackendConfig(name="trt", decoder="engine"),
        BackendConfig(name="trt", placement={"decode": "ort-cpu"}),
    ],
    ids=("no kernels", "asked for", "elsewhere"),
)
def test_the_decoder_is_no_kernels(bundle: Bundle, machine: Machine, config: BackendConfig) -> None:
    TensorRTRunner.load(bundle, config).close()
    assert ("decode" in machine.closed) == (not config.placement)


def test_the_decoders_kernels_are_missing(bundle: Bundle, machine: Machine) -> None:
    message = r'decoder="kernels" is asked for: libhmar_plugins\.so: not found; .*"engine"'
    with pytest.raises(BackendUnavailableError, match=message):
        TensorRTRunner.load(bundle, BackendConfig(name="trt", decoder="kernels"))
    assert_all_is_freed(machine, 0)


def test_the_decoders_kernels_run_in_the_backend_trt(bundle: Bundle) -> None:
    config = BackendConfig(name="trt", decoder="kernels", placement={"decode": "ort-cpu"})
    with pytest.raises(BackendUnavailableError, match="decode is on ort-cpu; place it there"):
        load_runner(bundle, config)


class FakePass:
    """An engine of kernels that runs a graph for one image up to four."""

    profiles, plan_nbytes, activation_nbytes = ({"B": 1}, {"B": 4}), 1_000_000, (5, 5_000_000)

    def close(self) -> None: ...


@pytest.fixture
def kernels(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Kernels for all of a generation; what they were asked for."""
    kinds = {spec.kind for spec in bundle.manifest.graphs.values()}
    asked: list[Any] = []

    def engines(*arguments: Any) -> list[tuple[str, FakePass]]:
        asked.append(arguments[3])
        return [("decode", FakePass())]

    monkeypatch.setattr(kernel_engines, "kinds_with_kernels", lambda *_: kinds - {"encode"})
    monkeypatch.setattr(trt, "kernel_engines", engines)
    return asked


def no_tensorrt(flavour: str | None) -> TensorRT:
    raise BackendUnavailableError("TensorRT is not installed")


def test_kernels_need_neither_engines_nor_tensorrt(
    bundle: Bundle, machine: Machine, kernels: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for plans in bundle.folder.glob("engines/*/engines.json"):
        plans.unlink()
    TensorRTRunner.load(bundle, BackendConfig(name="trt", max_batch=6)).close()
    monkeypatch.setattr(trt_folder, "import_tensorrt", no_tensorrt)
    runner = TensorRTRunner.load(bundle, BackendConfig(name="trt", max_batch=1))
    assert kernels == [(1, 2, 4, 6), (1,)] and runner.max_batch == 1
    with pytest.raises(EngineIncompatibleError, match=r"graph quant0: no engine of it is loaded"):
        runner.run("quant0", {"tokens": None, "f_hat": None})
    runner.close()
    assert_all_is_freed(machine, 0)


def test_engines_that_are_not_used_are_named(
    bundle: Bundle, machine: Machine, kernels: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.version = "1.8.0"
    TensorRTRunner.load(bundle, BackendConfig(name="trt")).close()
    assert kernels == [(1, 2, 4, 8)]
    assert "kernels alone, batches up to 8: " in (said := capsys.readouterr().err)
    assert "built with tensorrt_rtx 1.7.1, here is tensorrt_rtx 1.8.0" in said


@pytest.mark.parametrize(
    "config",
    [
        BackendConfig(name="trt", engines=Path("engines")),
        BackendConfig(name="trt", transformer="engine"),
    ],
    ids=("a folder", "TensorRT"),
)
def test_engines_that_are_asked_for_are_needed(
    bundle: Bundle,
    machine: Machine,
    kernels: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    config: BackendConfig,
) -> None:
    monkeypatch.setattr(trt_folder, "import_tensorrt", no_tensorrt)
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed"):
        TensorRTRunner.load(bundle, config)
    assert not kernels
    assert_all_is_freed(machine, 0)


def test_kernels_that_do_not_run_everything_need_engines(
    bundle: Bundle, machine: Machine, kernels: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_folder, "import_tensorrt", no_tensorrt)
    monkeypatch.setattr(kernel_engines, "kinds_with_kernels", lambda *_: {"decode"})
    with pytest.raises(BackendUnavailableError, match="TensorRT is not installed"):
        TensorRTRunner.load(bundle, BackendConfig(name="trt"))
    TensorRTRunner.load(
        bundle,
        BackendConfig(
            name="trt",
            placement=dict.fromkeys(
                {spec.kind for spec in bundle.manifest.graphs.values()} - {"decode"}, "ort-cpu"
            ),
        ),
    ).close()
    assert_all_is_freed(machine, 0)
