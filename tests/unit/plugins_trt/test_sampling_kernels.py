"""The sampling kernels in Triton's interpreter against the NumPy rule."""

from __future__ import annotations

import pytest

from tests.interpreted import run_interpreted

SETTINGS = (
    "plain", "unguided", "top-k", "one", "all-of-the-vocabulary", "top-p",
    "nucleus-of-everything", "both",
)  # fmt: skip


@pytest.fixture(scope="module")
def differences() -> dict[str, list[str]]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_sampling")


@pytest.mark.parametrize("ties", ["distinct", "ties"])
@pytest.mark.parametrize("pass_idx", [0, 2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_are_those_of_the_rule(
    differences: dict[str, list[str]], settings: str, pass_idx: int, ties: str
) -> None:
    assert differences[f"draw-{settings}-pass{pass_idx}-{ties}"] == []


@pytest.mark.parametrize("ties", ["distinct", "ties"])
@pytest.mark.parametrize("length", [4, 25, 36])
def test_selection_is_that_of_the_rule(
    differences: dict[str, list[str]], length: int, ties: str
) -> None:
    assert differences[f"select-{length}-{ties}"] == []
