"""The catalogue of Hi-MAR's graphs: one per step, with the lengths that the plan gives."""

from __future__ import annotations

import pytest

from export.himar.steps import Catalogue, StepSpec
from hmar.config import HIMAR_PRESETS, KLVAEConfig

BASE = HIMAR_PRESETS["himar-base-256"]


def steps_of(kind: str, num_iter: int = 4) -> list[StepSpec]:
    steps = Catalogue(BASE, KLVAEConfig(), "fp16", num_iter).steps()
    return [s for s in steps if s.kind == kind]


def width(step: StepSpec, name: str) -> int:
    (spec,) = (s for s in (*step.inputs, *step.outputs) if s.name == name)
    return spec.shape[1]


def test_every_pivot_is_predicted_once() -> None:
    *steps, any_number = steps_of("pivot")
    assert any_number.step_idx is None and width(any_number, "predicted") == "n"
    assert len(steps) == 32 and sum(width(s, "predicted") for s in steps) == 64
    assert [BASE.buffer_size + s.known for s in (steps[0], steps[-1])] == [64, 125]
    assert all(width(s, "z") == width(s, "predicted") for s in steps)


@pytest.mark.parametrize(
    ("num_iter", "lengths"),
    [
        (4, [128, 148, 203, 287]),
        (12, [128, 131, 137, 148, 163, 181, 203, 229, 256, 287, 318, 351]),
    ],
)
def test_encoder_lengths_of_the_dense_phase(num_iter: int, lengths: list[int]) -> None:
    # tests/golden/himar/README.md, "Cost per image"
    *steps, any_number = steps_of("dense", num_iter)
    assert [BASE.buffer_size + BASE.num_pivots + s.known for s in steps] == lengths
    assert all(width(s, "known") == s.known for s in steps[1:])
    assert any_number.step_idx is None and width(any_number, "known") == "known"


def test_first_steps_take_no_tokens() -> None:
    for kind in ("pivot", "dense"):
        first, second, *_ = steps_of(kind)
        assert {s.name for s in second.inputs} - {s.name for s in first.inputs} == {
            "known",
            "pivots" if kind == "pivot" else "dense",
        }


def test_names_are_distinct() -> None:
    names = [s.name for s in Catalogue(BASE, KLVAEConfig(), "fp16", 12).steps()]
    assert len(names) == len(set(names)) == 32 + 12 + 12
