"""Launches of a pass: each has a kernel, every kernel a launch, and memory holds the values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from plugins_trt.transformer.tiles import MANY_PROGRAMS, Layer, choose_tile
from runtime.backends.kernel_library import fit_programs
from runtime.errors import BackendUnavailableError
from runtime.launches import LaunchPlan, blocks
from runtime.layer_plan import MAX_PREFETCH
from runtime.transformer_plan import TransformerSizes, plan_pass
from tests.kernel_tables import kernel_table
from tests.unit.runtime.plan_checks import check_partial_sums

aot = pytest.importorskip("plugins_trt.transformer.aot", reason="no triton")

Kernels = dict[str, dict[str, Any]]
Plans = dict[tuple[str, int, int], LaunchPlan]
LAYERS: tuple[Layer, ...] = ("qkv", "proj", "fc1", "fc2", "head")
PARTS = {*LAYERS, "norm", "head_norm", "attention", "wide_attention"}
D8 = TransformerSizes(
    width=512, heads=8, hidden=2048, vocab=4096, layers={"base": 4, "ns": 4, "mask": 4}
)
D16 = TransformerSizes(
    width=1024, heads=16, hidden=4096, vocab=4096, layers={"base": 8, "ns": 8, "mask": 8}
)
D24 = TransformerSizes(
    width=1536, heads=24, hidden=6144, vocab=4096, layers={"base": 16, "ns": 8, "mask": 8}
)
D30 = TransformerSizes(
    width=1920, heads=30, hidden=7680, vocab=4096, layers={"base": 22, "ns": 8, "mask": 8}
)
D36 = TransformerSizes(
    width=2304, heads=36, hidden=9216, vocab=4096, layers={"base": 28, "ns": 8, "mask": 8}
)
SIZES = {"d8": D8, "d16": D16, "d24": D24, "d30": D30, "d36": D36}
PASSES = [
    (images, length)
    for images in (1, 2, 13, 16, 128)
    for length in (1, 4, 9, 16, 25, 36, 64, 100, 169, 256, 324, 1024)
]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return kernel_table(aot)


@pytest.fixture(scope="module")
def plans(kernels: Kernels) -> Plans:
    return {
        (name, images, length): plan_pass(sizes, "ns", images, length, kernels)
        for name, sizes in SIZES.items()
        for images, length in PASSES
    }


def test_the_library_holds_the_kernels_that_are_launched(kernels: Kernels, plans: Plans) -> None:
    launched = {step.kernel for plan in plans.values() for step in plan.steps}
    assert launched == {name for name, entry in kernels.items() if PARTS & entry["uses"].keys()}


def test_layers_run_in_the_tiles_that_were_measured(plans: Plans) -> None:
    for (name, images, length), plan in plans.items():
        launched = [step.kernel for step in plan.steps]
        for layer in LAYERS:
            tile = choose_tile(layer, SIZES[name].width, images * length)
            assert aot.linear_unit(layer, tile).name in launched


def test_attention_of_many_programs_has_kernels_of_its_own(kernels: Kernels, plans: Plans) -> None:
    seen = set()
    for (name, images, length), plan in plans.items():
        (kernel,) = {s.kernel for s in plan.steps if "attention" in s.kernel}
        is_wide = kernels[kernel]["function"] == "wide_attention"
        block = 64 if length <= 64 or 129 <= length <= 192 else 128
        programs = blocks(length, block) * SIZES[name].heads * images
        assert is_wide == (length >= 17 and programs >= MANY_PROGRAMS)
        seen.add(is_wide)
    assert seen == {False, True}


@pytest.mark.parametrize("multiprocessors", [132, 144, 114, 78, 2, 1])
def test_programs_of_smaller_cards(kernels: Kernels, multiprocessors: int) -> None:
    for entry in kernels.values():
        fitted = fit_programs(entry, multiprocessors)
        assert fitted.keys() == entry.keys()
        if "programs" not in entry or multiprocessors >= 132:
            assert fitted == entry
            continue
        cluster = entry["constants"]["CLUSTER"]
        assert fitted["programs"] % cluster == 0 and fitted["programs"] > 0
        assert fitted["programs"] <= max(multiprocessors, cluster)


def test_arguments_are_the_parameters_of_the_kernels(kernels: Kernels, plans: Plans) -> None:
    for step in (step for plan in plans.values() for step in plan.steps):
        entry = kernels[step.kernel]
        kinds, of = entry["parameters"], entry["constants"]
        assert all(kinds[name] in ("pointer", "tensor_map") for name in step.pointers)
        assert all(kinds[name] in ("i32", "fp32") for name in step.scalars)
        allowed = {"global_scratch", "profile_scratch", "gain", "offset", "next", "next_nbytes"}
        if of.get("SPLITS", 1) == 1:
            allowed |= {"partials", "arrivals"}
        if of.get("EPILOGUE") != aot.EPILOGUE_CODES["residual"]:
            allowed |= {"ada", "residual", "ada_stride", "gate_at"}
        assert set(kinds) - {*step.pointers, *step.scalars} <= allowed, step


def test_places_hold_what_is_written(kernels: Kernels, plans: Plans) -> None:
    for (name, images, length), plan in plans.items():
        rows, ends = images * length, [*sorted(plan.offsets.values()), plan.nbytes]
        room = {place: ends[ends.index(at) + 1] - at for place, at in plan.offsets.items()}
        for step in plan.steps:
            of, pointers = kernels[step.kernel]["constants"], step.pointers
            width = int(step.scalars["width"])
            if pointers["out"] != "logits":
                halves = 2 if of.get("HAS_LOW") else 1
                assert rows * width * halves * 2 <= room[pointers["out"]]
        check_partial_sums(kernels, plan)
        layers = SIZES[name].layers["base"] + SIZES[name].layers["ns"]
        assert layers == sum("attention" in step.kernel for step in plan.steps)


def test_a_layer_brings_the_weights_of_the_next_into_the_cache(
    kernels: Kernels, plans: Plans
) -> None:
    seen = set()
    for plan in plans.values():
        layers = [step for step in plan.steps if "weights" in step.pointers]
        for layer, after in pairwise([*layers, None]):
            assert layer is not None
            can = "next" in kernels[layer.kernel]["parameters"]
            nbytes = 2 * after.scalars["depth"] * after.scalars["width"] if after else 0
            if can and 0 < nbytes <= MAX_PREFETCH:
                assert after is not None
                assert layer.pointers["next"] == after.pointers["weights"]
                assert layer.scalars["next_nbytes"] == nbytes
            else:
                assert "next" not in layer.pointers and "next_nbytes" not in layer.scalars
            seen.add((can, 0 < nbytes <= MAX_PREFETCH))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_a_kernel_reads_what_the_one_before_wrote(plans: Plans) -> None:
    for plan in plans.values():
        written = {"x", "ada_base", "ada_ns", "head_ns"}
        for step in plan.steps:
            read = {step.pointers.get(name) for name in ("x", "qkv", "ada", "residual")} - {None}
            assert read <= written
            assert step.pointers["out"] not in read - {step.pointers.get("residual")}
            written.add(step.pointers["out"])
        assert plan.steps[-1].pointers["out"] == "logits"


def test_widths_that_are_no_multiple_are_refused(kernels: Kernels) -> None:
    sizes = TransformerSizes(
        width=192, heads=3, hidden=768, vocab=4096, layers={"base": 1, "ns": 1}
    )
    with pytest.raises(BackendUnavailableError, match=r"reads 128 values at once, .*qkv has 192"):
        plan_pass(sizes, "ns", 1, 4, kernels)
