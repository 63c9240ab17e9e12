"""The Triton kernel in the interpreter against the reference, and the choice of tiles."""

from __future__ import annotations

import pytest

from plugins_trt.block_sparse_attn.spec import PATTERNS
from plugins_trt.block_sparse_attn.variants import HEAD_DIMS, Norm, choose_tile, tiles, variants
from tests.attention_cases import PACKS
from tests.interpreted import run_interpreted


@pytest.fixture(scope="module")
def interpreted_errors() -> dict[str, float]:
    return run_interpreted("tests.unit.plugins_trt.interpreted_kernel")


@pytest.mark.parametrize("norm", [norm.name for norm in Norm])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("pack", PACKS)
def test_interpreted_kernel_is_the_reference(
    interpreted_errors: dict[str, float], pack: str, pattern: str, norm: str
) -> None:
    assert interpreted_errors[f"{pack}-{pattern}-{norm}"] < 1e-6


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_last_tile_takes_any_call(dtype: str, head_dim: int) -> None:
    last = tiles(dtype, head_dim)[-1]
    assert last.min_programs == last.min_block == 0
    assert choose_tile(dtype, head_dim, batch=1, length=1, heads=1, num_blocks=9) == last


def test_longer_blocks_get_larger_tiles() -> None:
    sizes = [
        choose_tile(
            "float16", 64, batch=4, length=length, heads=16, num_blocks=max(1, length // 4096)
        ).block_m
        for length in (1, 16, 256, 4096, 16384)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_names_of_variants_are_unique() -> None:
    names = [variant.name for variant in variants()]
    assert len(set(names)) == len(names)
