"""Hi-MAR's denoisers by their plans, with the kernels in Triton's interpreter, against PyTorch."""

from __future__ import annotations

import pytest

from tests.interpreted import run_interpreted

# float16 inside, as in the graphs; PyTorch's own float16 differs from float32 as much
RMS = 3e-3


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_denoisers")


@pytest.mark.parametrize("case", ["pivots", "pivots, in two parts", "pivots, unguided"])
def test_pivots(errors: dict[str, dict[str, float]], case: str) -> None:
    assert set(errors[case]) == {"noise", "variance"}
    assert all(error < RMS for error in errors[case].values()), errors[case]


@pytest.mark.parametrize("case", ["dense tokens", "dense tokens, unguided"])
def test_dense_tokens(errors: dict[str, dict[str, float]], case: str) -> None:
    assert errors[case]["noise"] < RMS
