"""Launches of Hi-MAR's denoisers: each has a kernel, every kernel a launch, memory holds values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hmar.config import HIMAR_PRESETS
from runtime.backends.denoiser_engine import planned_denoisers
from runtime.bundle import Kind
from runtime.denoiser_plan import (
    DENOISER_KINDS,
    DenoiserSizes,
    denoiser_weights,
    plan_denoiser,
    read_sizes,
)
from runtime.errors import BackendUnavailableError
from runtime.launches import ARRIVALS, LaunchPlan
from tests.kernel_tables import kernel_table
from tests.unit.runtime.manifests import himar_manifest
from tests.unit.runtime.published import published_himar

aot = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")

Kernels = dict[str, dict[str, Any]]
PARTS = {"activate", "ada", "silu", "affine_norm", "plain_attention"}
PARTS |= {
    f"{name}_{part}" for name in ("mlp", "dit") for part in ("embed", "noise", "noise_guided")
}
BATCHES, PIVOTS, TIMESTEPS = (1, 4, 32, 64), (1, 2, 3), 100


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return kernel_table(aot)


@pytest.fixture(scope="module")
def plans(kernels: Kernels) -> list[tuple[LaunchPlan, int]]:
    """Of the published sizes, with their rows."""
    found = []
    for config in HIMAR_PRESETS.values():
        for kind in DENOISER_KINDS:
            sizes = sizes_of(config, kind)
            for batch in BATCHES:
                for length in PIVOTS if sizes.name == "mlp" else (config.num_dense,):
                    halves = 1 if kind.endswith("_unguided") else 2
                    dims = {"B": batch, "N": 2 * batch, "T": TIMESTEPS, "n": length}
                    plan = plan_denoiser(sizes, kind, dims, length, kernels)
                    found.append((plan, halves * batch * length))
    return found


def sizes_of(config: Any, kind: Kind) -> DenoiserSizes:
    if "pivot" in kind:
        width, depth = config.mlp_width, config.mlp_depth
        return DenoiserSizes(name="mlp", width=width, depth=depth, hidden=width)
    width, hidden = config.dit_width, round(config.dit_width * config.dit_mlp_ratio)
    return DenoiserSizes(name="dit", width=width, depth=config.dit_depth, hidden=hidden)


def test_the_library_holds_the_kernels_that_are_launched(
    kernels: Kernels, plans: list[tuple[LaunchPlan, int]]
) -> None:
    launched = {step.kernel for plan, _ in plans for step in plan.steps}
    assert launched >= {name for name, entry in kernels.items() if PARTS & entry["uses"].keys()}


def test_arguments_are_the_parameters_of_the_kernels(
    kernels: Kernels, plans: list[tuple[LaunchPlan, int]]
) -> None:
    for step in (step for plan, _ in plans for step in plan.steps):
        kinds = kernels[step.kernel]["parameters"]
        assert all(kinds[name] == "pointer" for name in step.pointers)
        assert all(kinds[name] in ("i32", "fp32") for name in step.scalars)
        assert all(value < 1 << 31 for value in step.scalars.values())
        scalars = {name for name, kind in kinds.items() if kind != "pointer"}
        assert scalars - step.scalars.keys() <= {"ada_stride", "gate_at"}, step


def test_places_hold_what_is_written(kernels: Kernels, plans: list[tuple[LaunchPlan, int]]) -> None:
    for plan, rows in plans:
        ends = [*sorted(plan.offsets.values()), plan.nbytes]
        room = {place: ends[ends.index(at) + 1] - at for place, at in plan.offsets.items()}
        for step in plan.steps:
            of, pointers = kernels[step.kernel]["constants"], step.pointers
            if pointers.get("out") in room and "width" in step.scalars:
                assert rows * int(step.scalars["width"]) * 2 <= room[pointers["out"]]
            if "partials" in pointers:
                width = int(step.scalars["width"])
                assert of["SPLITS"] * step.scalars["rows"] * width * 4 <= room["partials"]
                assert pointers["arrivals"] == ARRIVALS and step.grid[0] <= plan.num_arrivals


@pytest.mark.parametrize("preset", HIMAR_PRESETS)
def test_launches_of_a_published_bundle_read_what_it_has(kernels: Kernels, preset: str) -> None:
    manifest = published_himar(preset)
    planned = planned_denoisers(manifest, kernels, (1, 3, 64))
    kinds = {name: graph.kind for name, graph in manifest.graphs.items()}
    assert planned.keys() == {name for name, kind in kinds.items() if kind in DENOISER_KINDS}
    # bytes, since only shapes count
    weights = {
        tensor: array.shape
        for kind in ("denoise_pivot", "denoise_dense")
        for tensor, array in denoiser_weights(
            sizes_of(HIMAR_PRESETS[preset], kind),
            lambda name: np.broadcast_to(np.int8(0), manifest.tensors[name].shape),
        ).items()
    }
    for name, (profiles, plans) in planned.items():
        graph = manifest.graphs[name]
        assert read_sizes(manifest, graph.kind) == sizes_of(HIMAR_PRESETS[preset], graph.kind)
        assert len(profiles) == len(plans) > 0
        given = {ARRIVALS, *weights} | {t.name for t in (*graph.inputs, *graph.outputs)}
        for plan in plans:
            read = {place for step in plan.steps for place in step.pointers.values()}
            assert read <= given | plan.offsets.keys()
            assert {t.name for t in graph.outputs} <= read, "all are written"
            for step in plan.steps:
                if "depth" in step.scalars:
                    shape = step.scalars["depth"], step.scalars["width"]
                    assert weights[step.pointers["weights"]] == shape
                    assert weights[step.pointers["bias"]] == shape[1:]


def test_models_without_kernels() -> None:
    with pytest.raises(BackendUnavailableError, match="--precision fp16"):
        read_sizes(himar_manifest(precision="fp32"), "denoise_pivot")
    with pytest.raises(BackendUnavailableError, match="published sizes"):
        read_sizes(himar_manifest(precision="fp16"), "denoise_dense")
