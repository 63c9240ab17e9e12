"""Hi-MAR's passes by their plans, with the kernels in Triton's interpreter, against PyTorch."""

from __future__ import annotations

import pytest

from tests.interpreted import run_interpreted

# float16 inside, as in the graphs; PyTorch's own float16 differs from float32 as much
RMS = 3e-3


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_himar")


@pytest.mark.parametrize("case", ["pivots", "pivots, nothing known"])
def test_pivots(errors: dict[str, dict[str, float]], case: str) -> None:
    assert set(errors[case]) == {"z", "head_cond"}
    assert all(error < RMS for error in errors[case].values()), errors[case]


@pytest.mark.parametrize("case", ["dense tokens", "dense tokens, nothing known"])
def test_dense_tokens(errors: dict[str, dict[str, float]], case: str) -> None:
    assert errors[case]["head_cond"] < RMS


def test_classes(errors: dict[str, dict[str, float]]) -> None:
    assert errors["classes"]["cond"] == 0


def test_gelu_is_as_exact_as_float16(errors: dict[str, dict[str, float]]) -> None:
    # 1 is rounding; small results are a further 1.5e-7 / 2 off for each unit of the operand
    assert errors["gelu"]["error"] < 2.5
