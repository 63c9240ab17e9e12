"""The backend of a configuration, and graphs placed on other backends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.backends.base import StepRunner
from runtime.backends.onnxrt import OnnxRuntimeRunner, choose_backend
from runtime.backends.trt import TensorRTRunner
from runtime.bundle import Bundle
from runtime.config import BackendConfig, BackendName
from runtime.denoising import Denoising
from runtime.errors import BackendUnavailableError
from runtime.nvtx_ranges import MarkedRunner, find_ranges

logger = logging.getLogger(__name__)


def load_runner(bundle: Bundle, config: BackendConfig) -> StepRunner:
    """The runner that a configuration asks for.

    Raises:
        BackendError: a backend is not available or cannot run the bundle.
    """
    decoding = config.placement.get("decode", config.name)
    if config.decoder == "kernels" and decoding != "trt":
        raise BackendUnavailableError(
            f'decoder="kernels" is asked for, and they run in the backend trt: decode is on '
            f'{decoding}; place it there, or use decoder="auto"'
        )
    ranges = find_ranges() if config.nvtx else None
    main = _load(bundle, config)
    others: dict[BackendName, StepRunner] = {}
    placed: dict[str, StepRunner] = {}
    try:
        for kind, wanted in config.placement.items():
            name = choose_backend(wanted)
            if name == main.name:
                continue
            if name not in others:
                others[name] = _load(bundle, replace(config, name=name, placement={}))
            placed[kind] = others[name]
            logger.info("graphs of kind %s on %s, the others on %s", kind, name, main.name)
    except BaseException:
        for runner in (main, *others.values()):
            runner.close()
        raise
    runner = PlacedRunner(main, placed) if placed else main
    return runner if ranges is None else MarkedRunner(runner, ranges)


def _load(bundle: Bundle, config: BackendConfig) -> StepRunner:
    if config.name == "trt":
        return TensorRTRunner.load(bundle, config)
    return OnnxRuntimeRunner(bundle, config)


@dataclass(frozen=True, slots=True)
class PlacedValue:
    """A value and the runner that it came from."""

    runner: StepRunner
    value: Any


class PlacedRunner(StepRunner):
    """Runs some kinds of graph on other runners; values pass between runners through the host."""

    def __init__(self, main: StepRunner, placed: Mapping[str, StepRunner]) -> None:
        super().__init__(main.manifest)
        self._main, self._placed = main, dict(placed)
        limits = [r.max_batch for r in (main, *placed.values()) if r.max_batch is not None]
        self.max_batch = min(limits, default=None)

    @property
    def name(self) -> str:
        others = ", ".join(f"{kind} on {runner.name}" for kind, runner in self._placed.items())
        return f"{self._main.name} ({others})"

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        runner = self._placed.get(self.manifest.graphs[graph].kind, self._main)
        values = {name: self._for(runner, value) for name, value in feeds.items()}
        outputs = runner.run(graph, values)
        return [PlacedValue(runner, value) for value in outputs.values()]

    def denoise(
        self, step: Denoising, head_cond: Any, images: Sequence[int], seed: int
    ) -> np.ndarray | None:
        runner = self._placed.get(step.kind, self._main)
        return runner.denoise(step, self._for(runner, head_cond), images, seed)

    def _for(self, runner: StepRunner, value: Any) -> Any:
        if not isinstance(value, PlacedValue):
            return value
        return value.value if value.runner is runner else value.runner.numpy(value.value)

    def numpy(self, value: Any) -> np.ndarray:
        return value.runner.numpy(value.value) if isinstance(value, PlacedValue) else value

    def mark(self) -> Any:
        return self._main.mark()

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        return self._main.elapsed_ms(start, stop)

    def close(self) -> None:
        for runner in {id(r): r for r in (self._main, *self._placed.values())}.values():
            runner.close()
