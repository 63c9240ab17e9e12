"""Launches of Hi-MAR's passes: each has a kernel, every kernel a launch, memory holds values."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from hmar.config import HIMAR_PRESETS
from runtime.backends.himar_engine import planned_himar
from runtime.backends.planned_engine import Planned
from runtime.bundle import Manifest
from runtime.errors import BackendUnavailableError
from runtime.himar_plan import HEADS, HIMAR_PASSES, himar_weights, read_sizes
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
PARTS = {"layer_norm", "plain_attention", "gelu_erf"}
PARTS |= {f"himar_{part}" for part in ("class", "known", "fill", "take_some", "take_all")}
BATCHES = (1, 3, 32)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return kernel_table(aot)


@pytest.fixture(scope="module", params=HEADS)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return published_himar(request.param)


@pytest.fixture(scope="module")
def planned(manifest: Manifest, kernels: Kernels) -> Planned:
    return planned_himar(manifest, kernels, BATCHES)


def test_the_library_holds_the_kernels_that_are_launched(
    kernels: Kernels, planned: Planned
) -> None:
    launched = {step.kernel for _, plans in planned.values() for p in plans for step in p.steps}
    assert launched >= {name for name, entry in kernels.items() if PARTS & entry["uses"].keys()}


def test_launches_read_what_a_bundle_has(
    manifest: Manifest, kernels: Kernels, planned: Planned
) -> None:
    kinds = {name: graph.kind for name, graph in manifest.graphs.items()}
    steps = {name for name, graph in manifest.graphs.items() if graph.step_idx}
    assert planned.keys() == {n for n, kind in kinds.items() if kind in HIMAR_PASSES} - steps
    check_reads(
        manifest, planned, himar_weights(read_sizes(manifest), partial(shapes_of, manifest))
    )
    for _, plans in planned.values():
        check_arguments(kernels, plans)


def test_places_hold_what_is_written(
    manifest: Manifest, kernels: Kernels, planned: Planned
) -> None:
    for profiles, plans in planned.values():
        for dims, plan in zip(profiles, plans, strict=True):
            rows = 0  # of the encoder, then of the decoder
            for step in plan.steps:
                place, width = step.pointers["out"], int(step.scalars["width"])
                if "known_kernel" in step.kernel or "fill_kernel" in step.kernel:
                    (rows,) = step.grid
                if "take" in step.kernel:
                    break
                if place in plan.offsets and place != "pivots_in":
                    assert rows * width * 2 <= room(plan)[place], step
                if place == "pivots_in":
                    assert step.scalars["rows"] == dims["N"] * manifest.himar.num_pivots
                    assert int(step.scalars["rows"]) * width * 2 <= room(plan)[place]
            check_partial_sums(kernels, plan)


def test_the_sizes_are_those_of_the_presets(manifest: Manifest) -> None:
    assert manifest.himar.preset is not None
    config, sizes = HIMAR_PRESETS[manifest.himar.preset], read_sizes(manifest)
    assert (sizes.width, sizes.heads) == (config.embed_dim, config.encoder_heads)
    assert sizes.width == 64 * sizes.heads == 64 * config.decoder_heads
    assert sizes.hidden == config.embed_dim * config.mlp_ratio
    assert sizes.depths == {"encoder": config.encoder_depth, "decoder": config.decoder_depth}
    assert sizes.head_widths == {"pivot": config.mlp_width, "dense": config.dit_width}
    assert sizes.length == config.buffer_size + config.num_tokens


def test_models_without_kernels() -> None:
    with pytest.raises(BackendUnavailableError, match="--precision fp16"):
        read_sizes(himar_manifest(precision="fp32"))
    with pytest.raises(BackendUnavailableError, match="this model is of other sizes"):
        read_sizes(himar_manifest(precision="fp16"))
    with pytest.raises(BackendUnavailableError, match="this model is himar-huge-256"):
        read_sizes(published_himar("himar-huge-256"))
