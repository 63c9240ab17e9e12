"""What a catalogue says of one graph, whatever the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from runtime.bundle import DtypeName, Kind, TensorSpec

DTYPE_NAMES: dict[str, DtypeName] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(ABC):
    """One graph to build; the fields are those of `runtime.bundle.GraphSpec`."""

    kind: Kind
    scale_idx: int | None = None
    step_idx: int | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the graph and of its file."""
