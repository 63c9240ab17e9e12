"""An engine of TensorRT on its device: one copy of the weights, a context per profile."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from runtime.backends.trt_library import TensorRT, context_settings, make_profiler
from runtime.engine_plan import Dims
from runtime.errors import BackendError, DeviceMemoryError

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What the runner asks of an engine."""

    @property
    def profiles(self) -> Sequence[Dims]:
        """Sizes of the symbolic dimensions that it was built for."""

    @property
    def plan_nbytes(self) -> int:
        """Bytes of the plan, nearly all of them weights."""

    @property
    def activation_nbytes(self) -> Sequence[int]:
        """Scratch memory of every profile."""

    @property
    def has_many_launches(self) -> bool:
        """Whether a run takes longer to put onto a stream than a CUDA graph of it."""

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        """Puts one run onto a stream.

        Args:
            profile: index in `profiles`.
            shapes: of the inputs; the same at every call with this profile.
            addresses: device memory of inputs and outputs.
            activations: device memory of the profile's `activation_nbytes`, shared with other
                engines; the same at every call.
        """

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        """Times layers from now on, of the profiles that have run before.

        Args:
            report: receives each layer's name and milliseconds, before `execute` returns.
        """

    def close(self) -> None: ...


class TensorRTEngine:
    """A deserialized plan; contexts are made when their profile is first used.

    TensorRT-RTX compiles kernels for the GPU when a context is made; they are kept in a file beside
    the plan.
    """

    def __init__(
        self,
        library: TensorRT,
        runtime: Any,
        name: str,
        plan: bytes,
        profiles: Sequence[Dims],
        kernel_cache: Path,
        messages: Sequence[str],
    ) -> None:
        self.name, self._profiles, self.plan_nbytes = name, tuple(profiles), len(plan)
        self._library, self._messages, self._cache_file = library, messages, kernel_cache
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if self._is_out_of_memory():
                raise DeviceMemoryError(
                    f"engine {name}: no room for a plan of {len(plan) / 1e6:.0f} MB{self._log()}"
                )
            raise BackendError(
                f"engine {name}: {library.flavour} {library.version} cannot load this plan"
                f"{self._log()}; build it again with scripts/build_engines.py --force"
            )
        count = self._engine.num_io_tensors
        self._tensors = {self._engine.get_tensor_name(i) for i in range(count)}
        self._activation_nbytes = tuple(
            int(self._engine.get_device_memory_size_for_profile_v2(i)) for i in range(len(profiles))
        )
        self._contexts: dict[int, Any] = {}
        self._bound: dict[int, dict[str, int]] = {}
        self._cache: Any = None
        self._cached = b""
        self._profiler: Any = None  # contexts refer to it without keeping it alive
        self._configs: list[Any] = []  # contexts refer to them without keeping them alive

    @property
    def profiles(self) -> Sequence[Dims]:
        return self._profiles

    @property
    def activation_nbytes(self) -> Sequence[int]:
        return self._activation_nbytes

    @property
    def has_many_launches(self) -> bool:
        return False

    def execute(
        self,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        activations: int,
        stream: int,
    ) -> None:
        context = self._contexts.get(profile)
        if context is None:
            context = self._make_context(profile, shapes, activations, stream)
        bound = self._bound[profile]
        for name, address in addresses.items():
            if name in self._tensors and bound.get(name) != address:
                bound.pop(name, None)  # so that an interrupt here does not leave the old address
                if not context.set_tensor_address(name, address):
                    raise BackendError(f"engine {self.name}: cannot bind {name}{self._log()}")
                bound[name] = address
        if not context.execute_async_v3(stream):
            raise BackendError(f"engine {self.name}: cannot run{self._log()}")

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        self._profiler = make_profiler(self._library, report)
        for context in self._contexts.values():
            context.profiler = self._profiler

    def _make_context(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], activations: int, stream: int
    ) -> Any:
        start = time.perf_counter()
        context = self._create_context()
        if context is None:
            if self._is_out_of_memory():
                raise DeviceMemoryError(f"engine {self.name}: no room for a context{self._log()}")
            raise BackendError(
                f"engine {self.name}: {self._library.flavour} {self._library.version} cannot make "
                f"a context for it on this GPU{self._log()}; build it here, where it is cut into "
                "stages that can run (scripts/build_engines.py --force), or run graphs of this "
                'kind elsewhere, such as placement={"decode": "ort-cpu"}'
            )
        if not context.set_optimization_profile_async(profile, stream):
            raise BackendError(f"engine {self.name}: no profile {profile}{self._log()}")
        # after the profile is chosen: before, TensorRT-RTX 1.4 crashes
        context.set_device_memory(activations, self.activation_nbytes[profile])
        for name, shape in shapes.items():
            if name in self._tensors and not context.set_input_shape(name, shape):
                raise BackendError(
                    f"engine {self.name}: profile {profile} ({self._profiles[profile]}) does not "
                    f"take {name} of {shape}{self._log()}"
                )
        self._contexts[profile], self._bound[profile] = context, {}
        seconds = time.perf_counter() - start
        logger.info(
            "engine %s: context for %s, %.2f s", self.name, self._profiles[profile], seconds
        )
        return context

    def _create_context(self) -> Any:
        settings = context_settings(self._library, self._engine)
        if self._library.is_rtx:
            if self._cache is None:
                self._cache = self._load_cache(settings)
            settings.set_runtime_cache(self._cache)
            self._configs.append(settings)
        return self._engine.create_execution_context(settings)

    def _load_cache(self, config: Any) -> Any:
        """Kernels compiled before, empty if there are none for this version."""
        cache = config.create_runtime_cache()
        if self._cache_file.is_file():
            self._cached = self._cache_file.read_bytes()
            if not cache.deserialize(self._cached):
                logger.info("%s: of another version, made anew", self._cache_file)
        return cache

    def _is_out_of_memory(self) -> bool:
        return any("outofmemory" in m.replace(" ", "").lower() for m in self._messages[-3:])

    def _log(self) -> str:
        return f" ({'; '.join(self._messages[-3:])})" if self._messages else ""

    def close(self) -> None:
        """Frees contexts and weights, and writes newly compiled kernels to their file."""
        if self._cache is not None:
            self._save(bytes(self._cache.serialize()))
        self._contexts.clear()
        self._configs.clear()
        self._cache = self._engine = None

    def _save(self, cached: bytes) -> None:
        if cached == self._cached:
            return
        partial = self._cache_file.with_suffix(f".{os.getpid()}.partial")
        try:
            partial.write_bytes(cached)
            os.replace(partial, self._cache_file)
        except OSError as error:
            logger.info("%s: compiled kernels are not kept (%s)", self._cache_file, error)
