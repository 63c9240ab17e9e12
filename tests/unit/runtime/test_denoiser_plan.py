"""Launches of Hi-MAR's denoisers: each has a kernel, every kernel a launch, memory holds values."""

from __future__ import annotations

from functools import partial
from typing import Any

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
from runtime.launches import LaunchPlan
from tests.kernel_tables import kernel_table
from tests.unit.runtime.manifests import himar_manifest
from tests.unit.runtime.plan_checks import (
    check_arguments,
    check_partial_sums,
    check_reads,
    room,
    shapes_of,
)
from tests.unit.runtime.published import published_himar

aot = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")

Kernels = dict[str, dict[str, Any]]
PARTS = {"activate", "ada", "silu", "affine_norm"}
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
    check_arguments(kernels, [plan for plan, _ in plans])


def test_places_hold_what_is_written(kernels: Kernels, plans: list[tuple[LaunchPlan, int]]) -> None:
    for plan, rows in plans:
        for step in plan.steps:
            out = step.pointers.get("out")
            if out in plan.offsets and "width" in step.scalars:
                assert rows * int(step.scalars["width"]) * 2 <= room(plan)[out]
        check_partial_sums(kernels, plan)


@pytest.mark.parametrize("preset", HIMAR_PRESETS)
def test_launches_of_a_published_bundle_read_what_it_has(kernels: Kernels, preset: str) -> None:
    manifest = published_himar(preset)
    planned = planned_denoisers(manifest, kernels, (1, 3, 64))
    kinds = {name: graph.kind for name, graph in manifest.graphs.items()}
    assert planned.keys() == {name for name, kind in kinds.items() if kind in DENOISER_KINDS}
    weights = {
        tensor: array
        for kind in ("denoise_pivot", "denoise_dense")
        for tensor, array in denoiser_weights(
            sizes_of(HIMAR_PRESETS[preset], kind), partial(shapes_of, manifest)
        ).items()
    }
    check_reads(manifest, planned, weights)
    for name in planned:
        kind = kinds[name]
        assert read_sizes(manifest, kind) == sizes_of(HIMAR_PRESETS[preset], kind)


def test_models_without_kernels() -> None:
    with pytest.raises(BackendUnavailableError, match="--precision fp16"):
        read_sizes(himar_manifest(precision="fp32"), "denoise_pivot")
    with pytest.raises(BackendUnavailableError, match="published sizes"):
        read_sizes(himar_manifest(precision="fp16"), "denoise_dense")
