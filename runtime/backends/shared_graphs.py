"""A step through graphs that all scales, or all steps of a phase but the first, have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime.bundle import GraphSpec, Manifest
from runtime.engine_plan import STEPS
from runtime.himar_profiles import STEPPED


def has_shared_graphs(spec: GraphSpec) -> bool:
    """Whether others do what this graph does, for all scales or steps."""
    return spec.kind in STEPS or (spec.kind in STEPPED and bool(spec.step_idx))


def run_by_shared_graphs(
    manifest: Manifest,
    graph: str,
    feeds: Mapping[str, Any],
    run: Callable[[str, Mapping[str, Any]], list[Any]],
    constant: Callable[[np.ndarray], Any] = lambda array: array,
) -> list[Any]:
    """Outputs of such a graph: the same operations by a phase's graph, or embedding and trunk.

    Args:
        run: runs a graph of the bundle, given its name and feeds.
        constant: makes a value that is the same at every call.
    """
    if manifest.graphs[graph].kind in STEPPED:
        return run(manifest.graph(manifest.graphs[graph].kind), feeds)
    spec, patch_nums = manifest.graphs[graph], manifest.hmar.patch_nums
    assert spec.scale_idx is not None
    length = patch_nums[spec.scale_idx] ** 2
    start = sum(pn * pn for pn in patch_nums[: spec.scale_idx])
    embed = manifest.graph(
        "embed_first" if start == 0 else "embed_ns" if spec.kind == "ns" else "embed_mask"
    )
    trunk = manifest.graph("ns_trunk" if spec.kind == "ns" else "mask_trunk")
    values = {
        **feeds,
        "positions": constant(np.arange(start, start + length, dtype=np.int32)),
        "cu_seqlens": constant(np.array([0, length], np.int32)),
    }
    results: list[Any] = []
    for name in (embed, trunk):
        step = manifest.graphs[name]
        results = run(name, {i.name: values[i.name] for i in step.inputs})
        values |= dict(zip((o.name for o in step.outputs), results, strict=True))
    return results
