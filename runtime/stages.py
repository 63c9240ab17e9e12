"""A graph run as stages, one after another: what each reads and makes, and where that lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bundle import TensorSpec
from runtime.engine_plan import nbytes

ALIGNMENT = 256  # of addresses, as TensorRT asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a graph; names are the graph's, also of tensors that pass between stages."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Arena:
    """One piece of memory for all tensors that pass between stages: offsets by name, and size."""

    offsets: dict[str, int]
    nbytes: int


def align(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lay_out_arena(stages: Sequence[Stage], dims: Mapping[str, int]) -> Arena:
    """Places of the tensors that later stages read; memory is used again after the last reader.

    Args:
        dims: sizes of the symbolic dimensions.
    """
    last_reader = {spec.name: i for i, stage in enumerate(stages) for spec in stage.inputs}
    offsets: dict[str, int] = {}
    live: dict[str, range] = {}
    for i, stage in enumerate(stages):
        for spec in stage.outputs:
            if spec.name in last_reader:
                live[spec.name] = _first_fit(list(live.values()), align(nbytes(spec, dims)))
                offsets[spec.name] = live[spec.name].start
        live = {name: place for name, place in live.items() if last_reader[name] > i}
    ends = [
        offsets[spec.name] + align(nbytes(spec, dims))
        for stage in stages
        for spec in stage.outputs
        if spec.name in offsets
    ]
    return Arena(offsets, max(ends, default=0))


def _first_fit(taken: Sequence[range], size: int) -> range:
    """The first free place of this size."""
    start = 0
    for place in sorted(taken, key=lambda place: place.start):
        if place.start - start >= size:
            break
        start = max(start, place.stop)
    return range(start, start + size)
