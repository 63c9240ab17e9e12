"""A step of one scale through its kind's scale-generic trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime.bundle import Manifest


def run_as_trunk(
    manifest: Manifest,
    graph: str,
    feeds: Mapping[str, Any],
    run: Callable[[str, Mapping[str, Any]], list[Any]],
    constant: Callable[[np.ndarray], Any] = lambda array: array,
) -> list[Any]:
    """Outputs of an `ns` or `mask` graph, by its embedding and its trunk: the same operations.

    Args:
        run: runs a graph of the bundle, given its name and feeds.
        constant: makes a value that is the same at every call.
    """
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
