"""The sampling rule on the device: kernels of the plugin library, launched by address."""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from runtime.backends.cuda import import_cuda
from runtime.errors import BackendError, BackendUnavailableError

logger = logging.getLogger(__name__)

C_TYPES: dict[str, Any] = {"pointer": ctypes.c_void_p, "i32": ctypes.c_int32}


class SamplingKernels(Protocol):
    """The rule of `runtime.sampler`, on memory of a device; arguments are addresses and sizes.

    Shapes and dtypes: `plugins_trt.sampling.kernel`.
    """

    def draw(
        self,
        *,
        logits: int,
        tokens: int,
        confidences: int,
        token_mask: int,
        settings: int,
        seed: int,
        images: int,
        batch: int,
        length: int,
        vocab: int,
        scale_idx: int,
        num_scales: int,
        pass_idx: int,
        is_guided: bool,
    ) -> None:
        """Tokens of one pass, and their confidences."""

    def select(
        self,
        *,
        confidences: int,
        candidates: int,
        selected: int,
        token_mask: int,
        batch: int,
        length: int,
        num_candidates: int,
        count: int,
        is_first: bool,
    ) -> None:
        """Positions of the next masked pass."""

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        """Images (B, 3, H, W) float32 in [0, 1] as (B, H, W, 3) uint8."""


class CudaSamplingKernels:
    """Kernels that were compiled ahead of time, of the plugin library.

    Args:
        library: `libhmar_plugins.so`.
        gpu: compute capability, as `sm90`.
        stream: on which to launch.

    Raises:
        BackendUnavailableError: the library has no kernels for this GPU, or cuda.bindings is not
            installed.
        BackendError: CUDA fails.
    """

    def __init__(self, library: Path, gpu: str, stream: int) -> None:
        self._cuda, self._stream = import_cuda("driver"), stream
        loaded = ctypes.CDLL(str(library))
        loaded.hmar_sampling_table.restype = ctypes.c_char_p
        loaded.hmar_sampling_image.restype = ctypes.c_void_p
        table: dict[str, dict[str, Any]] = json.loads(loaded.hmar_sampling_table())
        arch = choose_architecture(gpu, table)
        if arch is None:
            raise BackendUnavailableError(
                f"{library}: sampling kernels for {', '.join(table)}, none for {gpu}; build the "
                "library with -DHMAR_CUDA_ARCHS that name this GPU"
            )
        self._table = table[arch]
        (self._module,) = self._call("cuModuleLoadData", loaded.hmar_sampling_image())
        self._functions = {
            name: self._call("cuModuleGetFunction", self._module, name.encode())[0]
            for name in self._table
        }

    def draw(self, *, vocab: int, batch: int, length: int, **arguments: int) -> None:
        name = self._smallest("draw", vocab)
        self._launch(name, (length, batch), batch=batch, length=length, vocab=vocab, **arguments)

    def select(self, *, batch: int, length: int, **arguments: int) -> None:
        self._launch(self._smallest("select", length), (batch, 1), length=length, **arguments)

    def to_uint8(self, *, image: int, pixels: int, batch: int, side: int) -> None:
        name = self._smallest("to_uint8", 1)
        grid = (-(-side * side // self._table[name]["block"]), batch)
        self._launch(name, grid, image=image, pixels=pixels, num_pixels=side * side)

    def _smallest(self, function: str, size: int) -> str:
        """The kernel whose block holds this many items."""
        fitting = {
            name: entry["block"]
            for name, entry in self._table.items()
            if entry["function"] == function and entry["block"] >= size
        }
        if not fitting:
            raise BackendUnavailableError(f"no sampling kernel {function} for {size} items")
        return min(fitting, key=lambda name: fitting[name])

    def _launch(self, name: str, grid: tuple[int, int], **arguments: int) -> None:
        entry = self._table[name]
        kinds = [C_TYPES[kind] for kind in entry["parameters"].values()]
        values = [int(arguments.pop(parameter, 0)) for parameter in entry["parameters"]]
        if arguments:
            raise ValueError(f"kernel {name} has no parameters {sorted(arguments)}")
        self._call(
            "cuLaunchKernel",
            self._functions[name],
            *(*grid, 1),
            *(entry["threads"], 1, 1),
            entry["shared_bytes"],
            self._stream,
            (tuple(values), tuple(kinds)),
            0,
        )

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._cuda, function)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"sampling kernels: {function}: {status.name}")
        return tuple(results)


def choose_architecture(gpu: str, available: Mapping[str, Any]) -> str | None:
    """The architecture whose kernels run on a GPU: the same major version, and not a later one."""
    number = int(gpu.removeprefix("sm"))
    fitting = [a for a in available if int(a) // 10 == number // 10 and int(a) <= number]
    return max(fitting, key=int, default=None)
