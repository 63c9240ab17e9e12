"""Interpolation matrices against PyTorch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from export.tensors import area_matrix, bicubic_matrix
from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512
from tests.golden_data import assert_close

SIDES = (
    [(16, pn) for pn in PATCH_NUMS_256]
    + [(32, pn) for pn in PATCH_NUMS_512]
    + [(4, 3), (7, 5), (5, 1)]
)


@pytest.mark.parametrize(("side", "pn"), SIDES)
def test_bicubic_matrix(side: int, pn: int) -> None:
    h = torch.randn(2, 3, pn, pn, dtype=torch.float64, generator=torch.Generator().manual_seed(pn))
    matrix = torch.from_numpy(bicubic_matrix(side, pn)).double()
    expected = F.interpolate(h, size=(side, side), mode="bicubic") if pn != side else h
    assert_close(f"{pn}->{side}", expected, matrix @ h @ matrix.T, rms_ratio=1e-7)
    assert_close("weights sum to one", torch.ones(side), matrix.sum(1), rms_ratio=1e-6)


@pytest.mark.parametrize(("side", "pn"), SIDES)
def test_area_matrix(side: int, pn: int) -> None:
    f_hat = torch.randn(
        2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(pn)
    )
    matrix = torch.from_numpy(area_matrix(side, pn)).double()
    expected = F.interpolate(f_hat, size=(pn, pn), mode="area")
    assert_close(f"{side}->{pn}", expected, matrix @ f_hat @ matrix.T, rms_ratio=1e-7)
