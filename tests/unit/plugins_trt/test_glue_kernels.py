"""The kernels between the passes in Triton's interpreter against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from export.tensors import area_matrix, bicubic_matrix
from plugins_trt.glue.tiles import bicubic_taps, window
from tests.interpreted import run_interpreted

Errors = dict[str, dict[str, float]]
HALF = 1e-3  # float16 rounds by at most 2^-11 of a value, here up to three times
FLOAT = 1e-6


@pytest.fixture(scope="module")
def errors() -> Errors:
    return run_interpreted("tests.unit.plugins_trt.interpreted_glue")


@pytest.mark.parametrize("part", ["conditioning", "embeddings"])
def test_half_precision_kernels_are_pytorch(errors: Errors, part: str) -> None:
    assert all(error < HALF for error in errors[part].values()), errors[part]


@pytest.mark.parametrize("sizes", ["16-3-4", "16-16-10", "5-2-3", "20-1-2"])
def test_the_quantizer_is_that_of_pytorch(errors: Errors, sizes: str) -> None:
    found = errors[f"quantizer-{sizes}"]
    assert len(found) == 4 and all(error < FLOAT for error in found.values()), found


@pytest.mark.parametrize("source", [1, 2, 3, 5, 13, 16])
def test_taps_are_those_of_the_graphs(source: int) -> None:
    cells, shares = bicubic_taps(16, source)
    matrix = np.zeros((16, source))
    np.add.at(matrix, (np.arange(16)[:, None], cells), shares)
    np.testing.assert_allclose(matrix, bicubic_matrix(16, source), atol=2e-7)


def test_windows_hold_every_cell() -> None:
    for side in (5, 16, 32):
        for reduced in range(1, side + 1):
            counts = (area_matrix(side, reduced) > 0).sum(1)
            assert window(side, reduced) == counts.max()
