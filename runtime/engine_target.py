"""What engines are built with and for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from runtime.backends.cuda import CudaDevice
from runtime.backends.trt_library import SHORT, Flavour, TensorRT, check_targets, find_plugins
from runtime.engine_manifest import FUNCTION_BODY
from runtime.errors import BackendUnavailableError, EngineBuildError, NoDeviceError

logger = logging.getLogger(__name__)

Attention = Literal["auto", "plugin", "function"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What engines are built with and for; the same for all engines of a folder.

    Attributes:
        flavour, version: the TensorRT.
        gpus: compute capabilities, as `sm80`.
        is_named: the GPUs are told to TensorRT; otherwise it builds for the one of this machine.
        is_for_this_gpu: what is built can be loaded here.
        attention: "plugin" and the version of its library, or "function body".
        plugin: path of the plugin library; not part of what engines are compared by.
    """

    flavour: Flavour
    version: str
    gpus: tuple[str, ...]
    is_named: bool = False
    is_for_this_gpu: bool = False
    attention: str = FUNCTION_BODY
    plugin: Path | None = None

    def folder_name(self, precision: str, layout: str) -> str:
        suffix = "" if layout == "profiles" else f"_{layout}"
        return f"{'-'.join(self.gpus)}_{SHORT[self.flavour]}{self.version}_{precision}{suffix}"


def local_gpu() -> str | None:
    """Compute capability of this machine's GPU, as `sm90`; None without one.

    Raises:
        BackendUnavailableError: `cuda.bindings` is missing.
    """
    try:
        device = CudaDevice()
    except NoDeviceError:
        return None
    try:
        return device.gpu
    finally:
        device.close()


def local_multiprocessors() -> int:
    """How many multiprocessors this machine's GPU has.

    Raises:
        NoDeviceError: there is none.
    """
    device = CudaDevice()
    try:
        return device.multiprocessors
    finally:
        device.close()


def choose_target(
    library: TensorRT,
    gpus: Sequence[str],
    here: str | None,
    *,
    attention: Attention = "auto",
    plugin: Path | None = None,
) -> Target:
    """The target that a user asks for, after checking that it can be built here.

    Args:
        gpus: compute capabilities, as `sm80`; empty = this machine's GPU.
        here: this machine's GPU, from `local_gpu`.
        attention: "auto" takes the plugin library where it is built.
        plugin: the plugin library, None = where it is built.

    Raises:
        EngineBuildError: the library cannot build for these GPUs here.
        BackendUnavailableError: the plugin library is asked for and not there.
    """
    if not gpus:
        if here is None:
            names = ", ".join(library.targets())
            hint = f"name the GPUs to build for (--gpu {names})" if names else "build on the target"
            raise EngineBuildError(f"there is no GPU on this machine to build for: {hint}")
        gpus = (here,)
    # sm80 before sm120
    ordered = tuple(sorted(set(gpus), key=lambda gpu: (len(gpu), gpu)))
    check_targets(library, ordered, here)
    found = None if attention == "function" else find_plugins(plugin)
    if found is None:
        missing = "its library is not built (see README)"
    else:
        without = [gpu for gpu in ordered if not has_kernels(found.architectures, gpu)]
        missing = f"{found.path} has no kernels for {', '.join(without)}" if without else ""
    if missing and attention == "plugin":
        raise BackendUnavailableError(
            f"attention by the plugin: {missing}; use the function body (--attention function)"
        )
    if missing and attention == "auto":
        logger.info("attention by the function body: %s", missing)
    if missing:
        found = None
    return Target(
        flavour=library.flavour,
        version=library.version,
        gpus=ordered,
        # an RTX that runs on a GPU it cannot name builds for it by default
        is_named=set(ordered) <= set(library.targets()),
        is_for_this_gpu=here in ordered,
        attention=FUNCTION_BODY if found is None else f"plugin {found.version}",
        plugin=None if found is None else found.path,
    )


def has_kernels(architectures: Sequence[int], gpu: str) -> bool:
    """Whether kernels compiled for these capabilities (times ten) run on a GPU, as `sm89`."""
    number = int(gpu.removeprefix("sm"))
    return any(a // 10 == number // 10 and a <= number for a in architectures)
