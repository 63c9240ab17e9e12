"""The diffusion kernels in Triton's interpreter against the NumPy rule."""

from __future__ import annotations

import pytest

from tests.interpreted import run_interpreted


@pytest.fixture(scope="module")
def differences() -> dict[str, list[str]]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_diffusion")


@pytest.mark.parametrize("held", ["free", "held"])
def test_first_state(differences: dict[str, list[str]], held: str) -> None:
    assert differences[f"start-{held}"] == []


@pytest.mark.parametrize("variance", ["fixed", "learned"])
@pytest.mark.parametrize("held", ["free", "held"])
@pytest.mark.parametrize("draw", [0, 4])
def test_reverse_step(
    differences: dict[str, list[str]], draw: int, held: str, variance: str
) -> None:
    assert differences[f"reverse-draw{draw}-{held}-{variance}"] == []
