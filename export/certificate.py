"""What an export found when it compared its graphs with PyTorch."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """Error of one output: RMS relative to the reference's RMS, and the largest."""

    rms_ratio: float
    max_abs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """Result of one graph.

    Attributes:
        not_run: the reason why it could not be compared.
        stand_in: what ran it where the certificate's engine lacks a kernel.
    """

    outputs: dict[str, OutputParity] = field(default_factory=dict)
    seconds: float = 0.0
    not_run: str | None = None
    stand_in: str | None = None

    @property
    def rms_ratio(self) -> float:
        return max((o.rms_ratio for o in self.outputs.values()), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(ABC):
    """What was compared with what, and how close it came.

    Attributes:
        engine: what ran the graphs.
        labels: classes of the images of the reference run; -1 = none.
        rms_limit: largest RMS ratio of an output that passes.
    """

    precision: str
    engine: str
    labels: tuple[int, ...]
    seed: int
    rms_limit: float
    graphs: dict[str, GraphParity]
    seconds: float

    @property
    def worst_graph(self) -> str:
        return max(self.graphs, key=lambda name: self.graphs[name].rms_ratio)

    @property
    def not_run(self) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.not_run is not None]

    @property
    def stand_ins(self) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.stand_in is not None]

    @abstractmethod
    def run_summary(self) -> str:
        """One line on what was compared beside single graphs, for `summary`."""

    @abstractmethod
    def run_table(self) -> list[str]:
        """The lines of `table` below the graphs."""

    def summary(self) -> list[str]:
        """A few lines for people, each with a title of 12 characters."""
        worst = self.worst_graph
        lines = [
            f"parity       worst graph {worst}: rms error {self.graphs[worst].rms_ratio:.1e} "
            f"of the reference's rms (limit {self.rms_limit:.0e})",
            self.run_summary(),
        ]
        if self.not_run:
            reason = self.graphs[self.not_run[0]].not_run
            lines.append(f"not run      {len(self.not_run)} graphs: {reason}")
        if self.stand_ins:
            stand_in = self.graphs[self.stand_ins[0]].stand_in
            lines.append(
                f"stand-in     {len(self.stand_ins)} graphs run by {stand_in}, "
                f"for lack of kernels in {self.engine}"
            )
        return lines

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def table(self) -> str:
        """The ladder as text, one line per graph, then what else was compared."""
        lines = [f"{'graph':24} {'rms ratio':>10} {'max error':>10} {'seconds':>8}"]
        for name, graph in self.graphs.items():
            if graph.not_run is not None:
                lines.append(f"{name:24} not run: {graph.not_run}")
                continue
            worst = max(o.max_abs for o in graph.outputs.values())
            by = f"  by {graph.stand_in}" if graph.stand_in else ""
            lines.append(
                f"{name:24} {graph.rms_ratio:10.1e} {worst:10.1e} {graph.seconds:8.2f}{by}"
            )
        return "\n".join([*lines, "", *self.run_table()])
