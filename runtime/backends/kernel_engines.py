"""Graphs that the plugin library's own kernels run, in place of TensorRT's engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Literal

from plugins_trt.loader import PluginError, open_library
from runtime.backends.cuda import CudaDevice, Device
from runtime.backends.decoder_engine import DECODERS, decoder_engines, planned_decoders
from runtime.backends.denoiser_engine import denoiser_engines, planned_denoisers
from runtime.backends.glue_engine import glue_engines, planned_glue
from runtime.backends.himar_engine import himar_engines, planned_himar
from runtime.backends.kernel_library import KernelLibrary, Kernels, Part, read_table
from runtime.backends.planned_engine import PlannedEngine
from runtime.backends.transformer_engine import planned_passes, transformer_engines
from runtime.bundle import Bundle, Family, Kind
from runtime.config import BackendConfig
from runtime.denoiser_plan import DENOISER_KINDS
from runtime.engine_plan import OPTIONAL
from runtime.errors import BackendUnavailableError
from runtime.glue_plan import GLUE
from runtime.himar_plan import HIMAR_PASSES
from runtime.launches import KernelTable
from runtime.transformer_plan import PASSES

logger = logging.getLogger(__name__)

Setting = Literal["decoder", "transformer", "denoisers"]
Engines = dict[str, PlannedEngine]
OpenKernels = Callable[[Part], Kernels]

KINDS: dict[Setting, dict[Family, tuple[Kind, ...]]] = {
    "decoder": {"hmar": ("decode",), "himar": DECODERS},
    "transformer": {"hmar": (*PASSES, *GLUE, "ns", "mask"), "himar": HIMAR_PASSES},
    "denoisers": {"himar": DENOISER_KINDS},
}
"""Kinds of graph that a setting is about, by the family that there are kernels for."""

NOT_OF_GENERATION: set[Kind] = {"encode", *OPTIONAL}
"""Kinds of graph that generations by the default settings do without."""


def kinds_with_kernels(bundle: Bundle, gpu: str, batches: Sequence[int]) -> set[Kind]:
    """Kinds of graph that kernels of the built library can run on a GPU, which need not be here."""

    def decoder(table: Callable[[Part], KernelTable]) -> None:
        planned_decoders(bundle.manifest, table("decoder"), batches)

    def transformer(table: Callable[[Part], KernelTable]) -> None:
        if bundle.manifest.family == "himar":
            planned_himar(bundle.manifest, table("transformer"), batches)
            return
        planned_glue(bundle.manifest, table("glue"), batches)
        planned_passes(bundle.manifest, table("transformer"), batches)

    def denoisers(table: Callable[[Part], KernelTable]) -> None:
        planned_denoisers(bundle.manifest, table("transformer"), batches)

    checks: dict[Setting, Callable[[Callable[[Part], KernelTable]], None]] = {
        "decoder": decoder,
        "transformer": transformer,
        "denoisers": denoisers,
    }
    kinds: set[Kind] = set()
    for setting, check in checks.items():
        try:
            of_setting = _kinds(setting, bundle)
            check(partial(read_table, open_library("trt").path, gpu=gpu))
        except (PluginError, BackendUnavailableError) as error:
            logger.info("%s: TensorRT, since %s", setting, error)
        else:
            kinds |= set(of_setting)
    return kinds


def need_no_engines(
    bundle: Bundle, config: BackendConfig, gpu: str, batches: Sequence[int]
) -> bool:
    """Whether the kernels run all that a generation takes of a bundle, as a config has it."""
    if "engine" in (config.decoder, config.transformer, config.denoisers):
        return False
    kinds = {spec.kind for spec in bundle.manifest.graphs.values()}
    left = {kind for kind in kinds if config.runs(kind, "trt")} - NOT_OF_GENERATION
    return left <= kinds_with_kernels(bundle, gpu, batches)


def kernel_engines(
    bundle: Bundle, config: BackendConfig, device: CudaDevice, batches: Sequence[int]
) -> Iterator[tuple[str, PlannedEngine]]:
    """Engines of all graphs that kernels of the built library are to run and can run, by graph.

    Raises as `planned_engines` does.
    """

    @cache  # settings share kernels
    def kernels(part: Part) -> Kernels:
        return KernelLibrary(open_library("trt").path, part, device)

    yield from planned_engines(bundle, config, device, batches, kernels)


def planned_engines(
    bundle: Bundle,
    config: BackendConfig,
    device: Device,
    batches: Sequence[int],
    kernels: OpenKernels,
) -> Iterator[tuple[str, PlannedEngine]]:
    """The same with the kernels that a function opens.

    Raises:
        BackendUnavailableError: kernels are asked for, and there are none for this bundle or GPU.
        DeviceMemoryError: the weights do not fit into the device's memory.
    """

    def decoder() -> Engines:
        return decoder_engines(bundle, kernels("decoder"), device, batches)

    def transformer() -> Engines:
        if bundle.manifest.family == "himar":
            return himar_engines(bundle, kernels("transformer"), device, batches)
        glue = glue_engines(bundle, kernels("glue"), device, batches)
        try:
            return glue | transformer_engines(bundle, kernels("transformer"), device, batches)
        except BaseException:
            for engine in glue.values():
                engine.close()
            raise

    def denoisers() -> Engines:
        return denoiser_engines(bundle, kernels("transformer"), device, batches)

    yield from _load("decoder", bundle, config, decoder).items()
    yield from _load("transformer", bundle, config, transformer).items()
    yield from _load("denoisers", bundle, config, denoisers).items()


def _kinds(setting: Setting, bundle: Bundle) -> tuple[Kind, ...]:
    """Kinds of a bundle's graphs that a setting is about."""
    kinds = KINDS[setting].get(bundle.manifest.family)
    if kinds is None:
        raise BackendUnavailableError(
            f"these kernels are for bundles of the family {', '.join(KINDS[setting])}, this one is "
            f"of {bundle.manifest.family}"
        )
    return kinds


def _load(
    setting: Setting, bundle: Bundle, config: BackendConfig, load: Callable[[], Engines]
) -> Engines:
    use = getattr(config, setting)
    if use == "engine":
        return {}
    try:
        if not all(config.runs(kind, "trt") for kind in _kinds(setting, bundle)):
            return {}
        engines = load()
    except (PluginError, BackendUnavailableError) as error:
        if use == "kernels":
            raise BackendUnavailableError(
                f'{setting}="kernels" is asked for: {error}; or use TensorRT with '
                f'{setting}="engine"'
            ) from error
        logger.info("%s: TensorRT, since %s", setting, error)
        return {}
    nbytes = sum(engine.plan_nbytes for engine in engines.values())
    logger.info("%s: kernels, %.1f MiB of weights", setting, nbytes / (1 << 20))
    return engines
