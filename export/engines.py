"""What runs a bundle's graphs when they are compared with PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.ladder import ENGINE, NUMPY_DTYPES, Arrays, GraphSession, MissingKernelError
from export.torch_graph import TORCH_ENGINE, TorchGraph
from runtime.bundle import Manifest

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What is asked of a backend, see `runtime.backends.base.StepRunner`."""

    @property
    def name(self) -> str: ...

    def run(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, Any]: ...

    def numpy(self, value: Any) -> np.ndarray: ...


class Engine(Protocol):
    """Runs graphs by name."""

    @property
    def name(self) -> str: ...

    def run(self, graph: str, feeds: Arrays) -> Arrays:
        """Float32 outputs by name, from inputs of any dtype of the same kind."""
        ...

    def stand_in(self, graph: str) -> str | None:
        """What ran a graph, where the engine itself cannot."""
        ...


class CpuEngine:
    """ONNX Runtime's CPU provider; PyTorch, op by op, for graphs whose bfloat16 it cannot run.

    Sessions map the weights that they use, and a page counts as memory once per session that maps
    it: so only the last few are kept, `kept` of them, at least one.
    """

    name = ENGINE

    def __init__(self, folder: Path, manifest: Manifest, kept: int) -> None:
        self.folder, self.manifest, self.kept = folder, manifest, kept
        self._sessions: dict[str, GraphSession | TorchGraph] = {}
        self._stand_ins: set[str] = set()

    def run(self, graph: str, feeds: Arrays) -> Arrays:
        """Float32 outputs by name.

        Raises:
            ParityError: the graph's inputs or outputs are not those of the manifest.
        """
        if graph not in self._sessions:
            while len(self._sessions) >= self.kept:  # the oldest goes before the next one comes
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[graph] = self._open(graph)
        results = self._sessions[graph].run(feeds)
        return {name: array.astype(np.float32) for name, array in results.items()}

    def stand_in(self, graph: str) -> str | None:
        return TORCH_ENGINE if graph in self._stand_ins else None

    def _open(self, graph: str) -> GraphSession | TorchGraph:
        spec = self.manifest.graphs[graph]
        path = self.folder / spec.file
        try:
            return GraphSession(path, graph, spec)
        except MissingKernelError as error:
            if self.manifest.precision != "bf16":
                raise
            logger.debug("%s: the CPU provider lacks a bfloat16 kernel (%s)", graph, error)
            self._stand_ins.add(graph)
            return TorchGraph(path, spec)


class BackendEngine:
    """A backend of the runtime."""

    def __init__(self, runner: Runner, manifest: Manifest) -> None:
        self.runner, self.manifest, self.name = runner, manifest, runner.name

    def run(self, graph: str, feeds: Arrays) -> Arrays:
        """Float32 outputs by name.

        Raises:
            BackendError: the graph cannot be run.
        """
        spec = self.manifest.graphs[graph]
        values = {i.name: feeds[i.name].astype(NUMPY_DTYPES[i.dtype]) for i in spec.inputs}
        for i in spec.inputs:
            if i.dtype == "bfloat16":
                values[i.name] = values[i.name].view(np.uint16)
        results = self.runner.run(graph, values)
        outputs = {}
        for o in spec.outputs:
            array = self.runner.numpy(results[o.name])
            outputs[o.name] = array.view(NUMPY_DTYPES[o.dtype]).astype(np.float32)
        return outputs

    def stand_in(self, graph: str) -> str | None:
        return None
