"""Runs of engines as CUDA graphs: where there are many launches, making them takes longer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from runtime.backends.cuda import Device, Graph
from runtime.backends.device_values import BufferPool, Memory
from runtime.backends.trt_engine import Engine
from runtime.bundle import GraphSpec
from runtime.engine_plan import is_within, nbytes, resolve, with_totals

MAX_GRAPHS = 256
"""Those of Hi-MAR's 36 steps for several batches."""


class CapturedRuns:
    """Graphs by engine and profile; the least recently used goes when there are too many.

    Inputs and outputs lie where the graph has them, in memory that all profiles of an engine share.

    Args:
        activations: address of the engines' scratch memory.
        max_batch: profiles of more images are not used.
    """

    def __init__(self, device: Device, activations: int, max_batch: int) -> None:
        self._device, self._activations, self._max_batch = device, activations, max_batch
        self._pool = BufferPool(device)
        self._places: dict[str, dict[str, Memory]] = {}
        self._graphs: OrderedDict[tuple[str, int], Graph] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Of the inputs and outputs."""
        return self._pool.nbytes

    def run(
        self,
        name: str,
        spec: GraphSpec,
        engine: Engine,
        profile: int,
        write: Callable[[str, Memory], None],
        outputs: Mapping[str, Memory],
    ) -> None:
        """One run.

        Args:
            name: of the engine's graph.
            write: writes an input of the profile's size.
            outputs: receive the results.

        Raises:
            DeviceMemoryError: there is no room for inputs and outputs.
        """
        places = self._places.get(name) or self._reserve(name, spec, engine)
        for tensor in spec.inputs:
            write(tensor.name, places[tensor.name])
        graph = self._graphs.get((name, profile))
        if graph is None:
            sizes = with_totals(engine.profiles[profile])
            shapes = {tensor.name: resolve(tensor, sizes) for tensor in spec.inputs}
            addresses = {place: memory.address for place, memory in places.items()}
            graph = self._device.capture(
                lambda: engine.execute(
                    profile, shapes, addresses, self._activations, self._device.stream
                )
            )
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)[1].close()
            self._graphs[name, profile] = graph
        self._graphs.move_to_end((name, profile))
        graph.launch()
        for output, target in outputs.items():
            self._device.copy(target.address, places[output].address, target.nbytes)

    def _reserve(self, name: str, spec: GraphSpec, engine: Engine) -> dict[str, Memory]:
        profiles = [with_totals(p) for p in engine.profiles if is_within(p, self._max_batch)]
        places: dict[str, Memory] = {
            tensor.name: self._pool.take(max(nbytes(tensor, sizes) for sizes in profiles))
            for tensor in (*spec.inputs, *spec.outputs)
        }
        self._places[name] = places
        return places

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._places.clear()
        self._pool.close()
