"""What is true of every plan of a published bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backends.planned_engine import Planned
from runtime.bundle import Manifest
from runtime.launches import ARRIVALS, LaunchPlan, blocks

Kernels = Mapping[str, Mapping[str, Any]]


def shapes_of(manifest: Manifest, name: str) -> np.ndarray:
    """A tensor of bytes, of which only the shape counts."""
    return np.broadcast_to(np.int8(0), manifest.tensors[name].shape)


def check_reads(manifest: Manifest, planned: Planned, weights: Mapping[str, np.ndarray]) -> None:
    """Launches read weights of their shapes, inputs and scratch memory, and write all outputs."""
    for name, (profiles, plans) in planned.items():
        graph = manifest.graphs[name]
        assert len(profiles) == len(plans) > 0
        given = {ARRIVALS, *weights} | {t.name for t in (*graph.inputs, *graph.outputs)}
        for plan in plans:
            read = {place for step in plan.steps for place in step.pointers.values()}
            assert read <= given | plan.offsets.keys()
            assert {t.name for t in graph.outputs} <= read, "all are written"
            for step in plan.steps:
                if "depth" in step.scalars:
                    shape = step.scalars["depth"], step.scalars["width"]
                    assert weights[step.pointers["weights"]].shape == shape
                    assert weights[step.pointers["bias"]].shape == shape[1:]


def check_arguments(kernels: Kernels, plans: Sequence[LaunchPlan]) -> None:
    """They are the parameters of the kernels."""
    for step in (step for plan in plans for step in plan.steps):
        kinds = kernels[step.kernel]["parameters"]
        assert all(kinds[name] in ("pointer", "tensor_map") for name in step.pointers)
        assert all(kinds[name] in ("i32", "fp32") for name in step.scalars)
        assert all(value < 1 << 31 for value in step.scalars.values())
        scalars = {name for name, kind in kinds.items() if kind in ("i32", "fp32")}
        assert scalars - step.scalars.keys() <= {"ada_stride", "gate_at", "next_nbytes"}, step


def room(plan: LaunchPlan) -> dict[str, int]:
    """Bytes from each place to the next."""
    ends = [*sorted(plan.offsets.values()), plan.nbytes]
    return {place: ends[ends.index(at) + 1] - at for place, at in plan.offsets.items()}


def check_partial_sums(kernels: Kernels, plan: LaunchPlan) -> None:
    """There is room for them, and for the arrivals of all tiles."""
    for step in (step for step in plan.steps if "partials" in step.pointers):
        of, sizes = kernels[step.kernel]["constants"], step.scalars
        rows, width, cluster = int(sizes["rows"]), int(sizes["width"]), of.get("CLUSTER", 1)
        tiles = cluster * blocks(rows, cluster * of["BLOCK_M"]) * blocks(width, of["BLOCK_N"])
        # those in CUDA C++ leave whole tiles
        count = tiles * of["BLOCK_M"] * of["BLOCK_N"] if "CLUSTER" in of else rows * width
        assert of["SPLITS"] * count * 4 <= room(plan)["partials"]
        arrivals = tiles * (1 + of.get("COOPERATES", 0))
        assert step.pointers["arrivals"] == ARRIVALS and arrivals <= plan.num_arrivals
