"""Which TensorRT and which engines the backend loads, or that it needs none."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

from runtime.backends.kernel_engines import need_no_engines
from runtime.backends.staged_engine import StagedEngine
from runtime.backends.trt_engine import Engine, TensorRTEngine
from runtime.backends.trt_library import (
    TensorRT,
    import_tensorrt,
    installed_flavours,
    load_plugins,
    make_logger,
)
from runtime.bundle import Bundle
from runtime.config import BackendConfig
from runtime.engine_manifest import FUNCTION_BODY, EngineFolder, built_with, find_engines
from runtime.engine_plan import listed
from runtime.errors import BackendError, BackendUnavailableError, EngineIncompatibleError

logger = logging.getLogger(__name__)


def import_library(bundle: Bundle, config: BackendConfig) -> TensorRT | BackendUnavailableError:
    """TensorRT, or why it is not to be had."""
    built = built_with(bundle, config.engines)
    try:
        # with two libraries installed, the one that there are engines of
        return import_tensorrt(next((f for f in installed_flavours() if f in built), None))
    except BackendUnavailableError as error:
        return error


def find_folder(
    library: TensorRT | BackendUnavailableError, bundle: Bundle, config: BackendConfig, gpu: str
) -> tuple[TensorRT, EngineFolder] | None:
    """Engines for this GPU and what loads them; None if there are none, and none are needed."""
    try:
        if isinstance(library, BackendUnavailableError):
            raise library
        folder = find_engines(bundle, library.flavour, library.version, gpu, config.engines)
        return library, folder
    except (BackendUnavailableError, EngineIncompatibleError) as error:
        batches = powers_of_two(config.max_batch)
        if config.engines is not None or not need_no_engines(bundle, config, gpu, batches):
            raise
        # engines that were built, and are not used, are more than a remark
        level = logging.WARNING if getattr(error, "reasons", ()) else logging.INFO
        message = "the plugin library's kernels alone, batches up to %d: %s"
        logger.log(level, message, batches[-1], error)
        return None


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Those below a number, and the number."""
    return (*(1 << i for i in range((largest - 1).bit_length())), largest)


def load_engines(
    library: TensorRT,
    found: EngineFolder,
    bundle: Bundle,
    config: BackendConfig,
    gpu: str,
    leave_out: Collection[str],
) -> Iterator[tuple[str, Engine]]:
    start = time.perf_counter()
    entries = {
        graph: entry
        for graph, entry in found.manifest.engines.items()
        if graph not in leave_out and config.runs(bundle.manifest.graphs[graph].kind, "trt")
    }
    with_plugin = {e.attention for e in entries.values()} - {None, FUNCTION_BODY}
    if config.attention == "plugin" and found.manifest.attention == FUNCTION_BODY:
        raise EngineIncompatibleError(
            f"{found.folder}: plugin attention is asked for, these engines run the function body; "
            "build others with scripts/build_engines.py --attention plugin"
        )
    if not entries:  # all by kernels: TensorRT would take memory and do nothing
        return
    messages: list[str] = []
    trt_logger = make_logger(library, messages)
    runtime = library.module.Runtime(trt_logger)
    if runtime is None:
        raise BackendError(f"{library.flavour} {library.version}: no runtime: {messages}")
    if with_plugin:
        _load_plugin(library, found, sorted(map(str, with_plugin)))
    for graph, entry in entries.items():
        with ExitStack() as undo:
            parts: list[Engine] = []
            for i, plan in enumerate(entry.plans):
                stem = Path(plan.file).stem
                part = TensorRTEngine(
                    library,
                    runtime,
                    stem,
                    found.read_plan(graph, i, check=config.check_weights),
                    entry.profiles,
                    found.folder / f"{stem}.{gpu}.kernels",
                    messages,
                )
                undo.callback(part.close)
                parts.append(part)
            stages = [plan.stage for plan in entry.plans if plan.stage is not None]
            engine = StagedEngine(parts, stages) if stages else parts[0]
            undo.pop_all()
        yield graph, engine
        logger.debug("engine %s: %s", graph, listed(entry.profiles))
    logger.info(
        "%s: %d engines, %.1f MiB of plans, %.2f s",
        found.folder.name,
        len(entries),
        sum(e.nbytes for e in entries.values()) / (1 << 20),
        time.perf_counter() - start,
    )


def _load_plugin(library: TensorRT, found: EngineFolder, needed: list[str]) -> None:
    try:
        plugin = load_plugins(library)
    except BackendUnavailableError as error:
        raise BackendUnavailableError(
            f"{found.folder.name}: its engines hold the attention {', '.join(needed)}: {error}"
        ) from error
    if needed != [f"plugin {plugin.version}"]:
        raise EngineIncompatibleError(
            f"{found.folder.name}: its engines hold the attention {', '.join(needed)}, "
            f"{plugin.path} is version {plugin.version}; build them again with "
            "scripts/build_engines.py --force"
        )
