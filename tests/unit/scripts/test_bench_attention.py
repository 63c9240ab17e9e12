"""What the attention benchmark compares with, and how much work it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugins_trt.block_sparse_attn.spec import PATTERNS, Pattern
from scripts.attention_rivals import dense_mask, per_block
from scripts.attention_shapes import Shape, pyramid_shapes
from scripts.ceilings import Ceilings
from tests.attention_cases import make_inputs, relative_error


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rival", [dense_mask, per_block])
def test_rivals_compute_the_same(rival: object, pattern: Pattern) -> None:
    import torch

    inputs = make_inputs((1, 4, 9, 16), torch.float32, pattern, False, head_dim=16)
    out = rival(inputs.qkv, [1, 4, 9, 16], pattern, None)()
    assert relative_error(out, inputs.expected()) < 1e-6


@pytest.mark.parametrize(
    ("pattern", "pairs"), [("block_diagonal", 1 + 16), ("block_causal", 1 + 4 * 5)]
)
def test_counted_work(pattern: Pattern, pairs: int) -> None:
    shape = Shape(name="s", lengths=(1, 4), batch=2, heads=3, pattern=pattern, qk_l2_norm=False)
    assert shape.flops == 4 * 2 * 3 * 64 * pairs
    assert shape.num_bytes() == 4 * 2 * 5 * 3 * 64 * 2


def test_the_floor_is_the_larger_of_arithmetic_and_bytes() -> None:
    ceilings = Ceilings(tflops=500, gbytes_per_s=2000)
    assert ceilings.floor_ms(1e12, 1e9) == 2.0
    assert ceilings.floor_ms(1e12, 8e9) == 4.0


def test_the_pyramids_have_the_published_lengths() -> None:
    lengths = {shape.name: shape.length for shape in pyramid_shapes([16], (False,))}
    assert lengths == {"pyramid-256": 680, "pyramid-512": 2240, "pyramid-1024": 9451}


def test_plot_from_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install '.[bench]'")
    from scripts.attention_plot import plot

    row = {
        "shape": "pyramid-256", "pattern": "block_diagonal", "l2_norm": False, "heads": 16,
        "what": "ours", "median_ms": 0.02,
    }  # fmt: skip
    report = {"gpu": "a GPU", "rows": [row, row | {"what": "flex", "error": "no"}]}
    plot(json.loads(json.dumps(report)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
