"""Launches between the passes: every one has a kernel, every kernel a launch, and its arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from runtime.bundle import GraphSpec, WeightSpec
from runtime.engine_plan import EngineOptions, plan_profiles
from runtime.glue_plan import GLUE, glue_weights, plan_glue
from runtime.launches import LaunchPlan
from tests.kernel_tables import kernel_table
from tests.unit.runtime.manifests import manifest
from tests.unit.runtime.published import published

aot = pytest.importorskip("plugins_trt.glue.aot", reason="no triton")

NAMES = ("hmar-d16-256", "hmar-d24-512", "hmar-d36-s-512")


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    return kernel_table(aot)


@pytest.fixture(scope="module")
def plans(kernels: dict[str, dict[str, Any]]) -> list[tuple[GraphSpec, LaunchPlan]]:
    options, found = EngineOptions(batches=(1, 64), guidance="any"), []
    for bundle in map(published, NAMES):
        for name, spec in bundle.graphs.items():
            if spec.kind in GLUE:
                for profile in plan_profiles(spec, bundle.hmar.patch_nums, options):
                    found.append((spec, plan_glue(bundle, name, profile, kernels)))
    return found


def test_the_library_holds_the_kernels_that_are_launched(
    kernels: dict[str, dict[str, Any]], plans: list[tuple[GraphSpec, LaunchPlan]]
) -> None:
    assert {step.kernel for _, plan in plans for step in plan.steps} == set(kernels)


def test_arguments_are_the_parameters_of_the_kernels(
    kernels: dict[str, dict[str, Any]], plans: list[tuple[GraphSpec, LaunchPlan]]
) -> None:
    optional = {"f_hat": "ADDS", **dict.fromkeys(("h", "token_mask", "mask_embed"), "HAS_MASK")}
    for step in (step for _, plan in plans for step in plan.steps):
        kinds, constants = kernels[step.kernel]["parameters"], kernels[step.kernel]["constants"]
        assert all(kinds[name] == "pointer" for name in step.pointers)
        assert all(kinds[name] != "pointer" for name in step.scalars)
        left_out = set(kinds) - {*step.pointers, *step.scalars, "global_scratch", "profile_scratch"}
        assert all(name in optional and not constants[optional[name]] for name in left_out)


def test_every_output_is_written_and_every_input_read(
    plans: list[tuple[GraphSpec, LaunchPlan]],
) -> None:
    for spec, plan in plans:
        used = {place for step in plan.steps for place in step.pointers.values()}
        assert {tensor.name for tensor in (*spec.inputs, *spec.outputs)} <= used, spec.kind


def test_layers_of_modulations_lie_one_behind_the_other() -> None:
    bundle = manifest()
    names = ["qkv.weight", "ada.weight", "ada.bias"]
    tensors = {
        f"base_blocks.{i}.{name}": WeightSpec("float16", (1,), 0)
        for i in range(11)
        for name in names
    }
    bundle = dataclasses.replace(bundle, tensors=tensors)
    arrays = glue_weights(bundle, lambda name: np.zeros(1, np.float16))
    order = [name for name in arrays if ".ada." in name]
    assert order == [
        f"base_blocks.{i}.ada.{part}" for i in range(11) for part in ("weight", "bias")
    ]
