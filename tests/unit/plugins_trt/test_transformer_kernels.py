"""The transformer's kernels in Triton's interpreter against PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest

from plugins_trt.transformer.tiles import Tile
from plugins_trt.transformer.weights import split
from tests.interpreted import run_interpreted

Errors = dict[str, dict[str, float]]
HALF = 4e-4  # float16 rounds by at most 2^-11
FLOAT = 1e-6  # two halves hold 22 bits


@pytest.fixture(scope="module")
def errors() -> Errors:
    return run_interpreted("tests.unit.plugins_trt.interpreted_transformer")


@pytest.mark.parametrize("tile", ["whole", "split"])
@pytest.mark.parametrize("rows", ["1x1", "2x25"])
def test_linear_layers_are_those_of_pytorch(errors: Errors, tile: str, rows: str) -> None:
    found = errors[f"linear-{tile}-{rows}"]
    assert set(found) == {"plain", "gelu", "residual"}
    assert all(error < HALF for error in found.values()), found


@pytest.mark.parametrize("tile", ["whole", "split"])
def test_logits_are_those_of_float32(errors: Errors, tile: str) -> None:
    assert errors[f"logits-{tile}"]["out"] < FLOAT


def test_norm_is_that_of_pytorch(errors: Errors) -> None:
    assert errors["norm"]["out"] < HALF


@pytest.mark.parametrize("kind", ["attention", "whole-attention"])
@pytest.mark.parametrize("size", ["1x1", "2x9", "1x37"])
def test_attention_is_that_of_pytorch(errors: Errors, kind: str, size: str) -> None:
    assert errors[f"{kind}-{size}"]["out"] < HALF


def test_halves_add_up() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    high, low = np.split(split(weights).astype(np.float32), 2)
    np.testing.assert_allclose(high + low, weights, rtol=2**-21, atol=2**-24)


def test_tiles_cover_the_output() -> None:
    tile = Tile(rows=64, columns=32)
    assert [tile.count(r, 64) for r in (1, 64, 65)] == [2, 2, 4]
