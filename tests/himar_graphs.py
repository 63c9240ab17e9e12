"""Hi-MAR's exported graphs on ONNX Runtime, and golden generations by them."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.engines import CpuEngine
from export.himar.feeds import Tensors
from export.himar.generation import GraphGeneration
from export.himar.teacher import arrays
from hmar.himar import Phase
from hmar.quant import flatten_map
from runtime.bundle import Bundle, GraphSpec, Kind
from tests.himar_golden import Arrays, HiMARCase, noise_call, sampling_of

TOKENS = ("p1.tokens", "p2.tokens")


class Graphs:
    """The graphs of a bundle."""

    def __init__(self, folder: Path) -> None:
        self.bundle = Bundle.open(folder)
        self.steps: dict[str, GraphSpec] = self.bundle.manifest.graphs

    def path(self, name: str) -> Path:
        return self.bundle.path(self.steps[name])

    @cached_property
    def _engine(self) -> CpuEngine:
        return CpuEngine(self.bundle.folder, self.bundle.manifest, kept=len(self.steps))

    def run(self, name: str, **feeds: Tensor) -> list[Tensor]:
        wanted = {spec.name for spec in self.steps[name].inputs}
        assert set(feeds) == wanted, f"{name}: {sorted(feeds)} for {sorted(wanted)}"
        return [torch.from_numpy(out) for out in self._engine.run(name, arrays(feeds)).values()]

    def call(self, kind: Kind, step_idx: int | None, feeds: Tensors) -> Tensors:
        """See `export.himar.generation.Run`."""
        name = self.bundle.manifest.graph(kind, step_idx=step_idx)
        names = [spec.name for spec in self.steps[name].outputs]
        return dict(zip(names, self.run(name, **feeds), strict=True))


def generation_arrays(case: HiMARCase, graphs: Graphs) -> Arrays:
    """A golden generation by graphs: tokens and `small_z`, under the names of the traces."""
    config, none = case.model.config, case.model.config.num_classes
    orders = case.tensor("orders").long()
    labels = case.json["sampler"]["labels"] or [none] * len(orders)
    C, side = config.token_channels, config.dense_side
    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def noise(phase: Phase, step: int, positions_Bn: Tensor, draw: int) -> Tensor:
        call, (B, n) = noise_call(case, phase, step, draw), positions_Bn.shape
        if phase == "pivot":
            return case.noise(call, (B, n, C))
        return flatten_map(case.noise(call, (B, C, side, side)))

    rows = graphs.run("cond", label=torch.tensor([*labels, none]))[0]
    generation = GraphGeneration(
        graphs.call,
        config,
        rows[:-1],
        rows[-1:],
        orders,
        sampling_of(case),
        noise,
        lambda name, value: seen[name].append(value.numpy()),
    )
    generation.tokens(generation.start())
    # the golden arrays begin with what is there before the first step
    stacked = {name: np.stack([np.zeros_like(seen[name][0]), *seen[name]]) for name in TOKENS}
    halves = 1 if generation.sampling.cfg == 1 else 2
    return {**stacked, "small_z": np.concatenate(seen["small_z"] * halves)}
