"""`tensorrt` from 10.13, `tensorrt` 11 and `tensorrt_rtx` behind the few functions that differ."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from plugins_trt.loader import (
    Library,
    PluginError,
    PluginNotFoundError,
    load_trt_plugins,
    open_library,
)
from runtime.errors import BackendUnavailableError, EngineBuildError

logger = logging.getLogger(__name__)

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
SHORT: dict[str, str] = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}
OLDEST = (10, 13)  # of tensorrt: the first with all of the API used here
HOW_TO_INSTALL = "pip install tensorrt-rtx-cu13 (any GPU since Turing), or pip install tensorrt"


@dataclass(frozen=True, slots=True)
class TensorRT:
    """An imported TensorRT."""

    module: ModuleType
    flavour: Flavour

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        return self.flavour == "tensorrt_rtx"

    @property
    def short_name(self) -> str:
        """As in names of folders: `rtx1.7.1.116`."""
        return f"{SHORT[self.flavour]}{self.version}"

    def targets(self) -> tuple[str, ...]:
        """Compute capabilities to build for on any machine, as `sm80`; () = this GPU's alone."""
        if not self.is_rtx:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(name.lower() for name in names if name.startswith("SM"))


def installed_flavours() -> list[Flavour]:
    """The packages that are installed; none is imported."""
    return [f for f in FLAVOURS if importlib.util.find_spec(f) is not None]


def import_tensorrt(flavour: Flavour | None = None) -> TensorRT:
    """The TensorRT asked for, or the installed one; `tensorrt` if both are.

    Raises:
        BackendUnavailableError: it is not installed, or too old.
    """
    if flavour is None:
        found = installed_flavours()
        if not found:
            raise BackendUnavailableError(f"TensorRT is not installed: {HOW_TO_INSTALL}")
        flavour = found[0]
    try:
        library = TensorRT(importlib.import_module(flavour), flavour)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{flavour} cannot be imported ({error}): {HOW_TO_INSTALL}"
        ) from error
    if not library.is_rtx and _numbers(library.version) < OLDEST:
        raise BackendUnavailableError(
            f"tensorrt {library.version} is installed, 10.13 or newer is needed: "
            "pip install -U tensorrt"
        )
    return library


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def make_logger(library: TensorRT, messages: list[str] | None = None) -> Any:
    """A TensorRT logger that writes to ours; warnings and errors also go to `messages`."""
    trt = library.module
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if messages is not None and levels[severity] >= logging.WARNING:
                messages.append(message)
            if levels[severity] > logging.NOTSET:
                logger.log(levels[severity], "%s", message)

    return Logger()


def make_profiler(library: TensorRT, report: Callable[[str, float], None]) -> Any:
    """A TensorRT profiler that hands on each layer's name and milliseconds."""

    class Profiler(library.module.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            library.module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()


def check_targets(library: TensorRT, targets: Sequence[str], gpu: str | None) -> None:
    """Checks that engines for these GPUs can be built here.

    Args:
        targets: compute capabilities, as `sm80`.
        gpu: compute capability of this machine's GPU, None without one.

    Raises:
        ValueError: a name is none.
        EngineBuildError: they cannot.
    """
    if wrong := [t for t in targets if not (t[:2] == "sm" and t[2:].isdigit())]:
        raise ValueError(f"GPUs are compute capabilities such as sm89, got {', '.join(wrong)}")
    if list(targets) == [gpu]:
        return
    known = library.targets()
    if not known:
        raise EngineBuildError(
            f"{library.flavour} {library.version} builds engines for the GPU that it runs on "
            f"({gpu or 'none here'}), not for {', '.join(targets)}; "
            "build on the target machine, or use tensorrt_rtx"
        )
    if unknown := [t for t in targets if t not in known]:
        raise EngineBuildError(
            f"{library.flavour} {library.version} cannot build ahead of time for "
            f"{', '.join(unknown)}, only for {', '.join(known)}; build on a machine with that GPU "
            f"and without --gpu (here: {gpu or 'no GPU'}), or use another version"
        )


def create_network(library: TensorRT, builder: Any) -> Any:
    """A network whose precision is that of the graph."""
    flags = library.module.NetworkDefinitionCreationFlag
    # the only kind there is where the flag is gone
    typed = getattr(flags, "STRONGLY_TYPED", None)
    return builder.create_network(0 if typed is None else 1 << int(typed))


def configure(
    library: TensorRT, config: Any, targets: Sequence[str] | None, workspace_bytes: int | None
) -> None:
    """Settings of a build.

    Args:
        targets: compute capabilities, as `sm80`; None = what the library builds for by default.
        workspace_bytes: limit on scratch memory; None = the GPU's memory.
    """
    trt = library.module
    # float32 means float32: TF32 products would change tokens
    config.clear_flag(trt.BuilderFlag.TF32)
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if targets is not None:
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            capability = trt.ComputeCapability.__members__[target.upper()]
            config.set_compute_capability(capability, i)


def context_settings(library: TensorRT, engine: Any) -> Any:
    """What an engine's `create_execution_context` takes: scratch memory is the caller's."""
    trt = library.module
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not library.is_rtx:
        return strategy
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # by default kernels are replaced while others already run, and sums with them
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.dynamic_shapes_kernel_specialization_strategy = eager
    return config


def keeps_timing_cache(library: TensorRT) -> bool:
    """Whether builds measure kernels, so that the timings are worth keeping; RTX does not."""
    return not library.is_rtx


def load_plugins(library: TensorRT, path: Path | str | None = None) -> Library:
    """Registers the plugin library.

    Args:
        path: the library or its folder, None = where it is built.

    Raises:
        BackendUnavailableError: it is not built, of another version, or TensorRT refuses it.
    """
    try:
        return load_trt_plugins(library.module, path)
    except PluginError as error:
        raise BackendUnavailableError(f"attention plugin: {error}") from error


def find_plugins(path: Path | str | None = None) -> Library | None:
    """The plugin library, None where it is not built; nothing is registered.

    Raises:
        BackendUnavailableError: the library at `path`, or the one found, cannot be used.
    """
    try:
        return open_library("trt", path)
    except PluginNotFoundError as error:
        if path is None:
            logger.info("%s", error)
            return None
        raise BackendUnavailableError(f"attention plugin: {error}") from error
    except PluginError as error:
        raise BackendUnavailableError(f"attention plugin: {error}") from error


def library_links(flavour: Flavour, folder: Path) -> Path | None:
    """A folder for LD_LIBRARY_PATH with the file name that the parser opens for a plugin.

    The parser of TensorRT-RTX opens `libtensorrt_rtx.so` and aborts the process where it is
    missing; the wheel has `libtensorrt_rtx.so.1` only.

    Args:
        folder: an existing folder to put links into.
    """
    if flavour != "tensorrt_rtx":
        return None
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return None
    for place in spec.submodule_search_locations:
        for file in Path(place).glob("libtensorrt_*.so.*"):
            link = folder / (file.name.partition(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(file)
    return folder
