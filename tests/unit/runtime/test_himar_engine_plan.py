"""Which engines a Hi-MAR bundle gets, and for how many tokens and rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.bundle import Manifest
from runtime.engine_plan import EngineOptions, EngineSpec, pad_rows, plan_engines, select_profile
from runtime.errors import BackendUnavailableError
from runtime.glue_plan import check_tensors
from tests.unit.runtime.published import published_himar


@pytest.fixture(scope="module")
def base() -> Manifest:
    """The graphs of Hi-MAR-B as they are exported."""
    return published_himar("himar-base-256")


def planned(manifest: Manifest, options: EngineOptions) -> dict[str, EngineSpec]:
    return {engine.graph: engine for engine in plan_engines(manifest, options)}


def test_weights_of_a_phase_are_in_two_engines(base: Manifest) -> None:
    engines = planned(base, EngineOptions(batches=(1, 32)))
    assert list(engines) == [
        *("cond", "pivot_00", "pivot", "denoise_pivot", "modulate_pivot"),
        *("denoise_pivot_modulated", "dense_00", "dense", "denoise_dense"),
        *("decode_pivot", "decode", "encode"),
    ]
    assert engines["pivot_00"].profiles == ({"N": 2}, {"N": 64})
    assert len(engines["pivot"].profiles) == 2 * 31
    assert engines["pivot"].profiles[-1] == {"N": 64, "known": 61, "n": 3}
    assert [p["known"] for p in engines["dense"].profiles] == [20, 20, 75, 75, 159, 159]
    assert engines["denoise_pivot"].profiles == tuple(
        {"B": b, "2B": 2 * b, "n": n} for n in (1, 2, 3) for b in (1, 32)
    )
    # two time steps are the manifest's default
    assert engines["modulate_pivot"].profiles[-1] == {"N": 64, "T": 2, "n": 3}
    assert engines["denoise_pivot_modulated"].profiles == engines["denoise_pivot"].profiles
    assert engines["denoise_dense"].profiles == ({"B": 1, "2B": 2}, {"B": 32, "2B": 64})
    assert engines["decode"].profiles == ({"B": 1}, {"B": 32})


def test_modulations_of_many_images_would_take_too_much_memory(base: Manifest) -> None:
    engines = planned(base, EngineOptions(batches=(8, 64)))
    assert {p["N"] for p in engines["modulate_pivot"].profiles} == {16}
    assert "modulate_pivot" not in planned(base, EngineOptions(batches=(64,)))


def test_an_engine_for_every_step(base: Manifest) -> None:
    engines = planned(base, EngineOptions(layout="per-scale"))
    stepped = [name for name in engines if name.startswith(("pivot", "dense"))]
    assert len(stepped) == 32 + 4 and {"pivot", "dense"}.isdisjoint(stepped)
    assert all(engines[name].profiles == ({"N": 2},) for name in stepped)


def test_with_and_without_guidance(base: Manifest) -> None:
    engines = planned(base, EngineOptions(batches=(2,), guidance="any"))
    assert engines["pivot_00"].profiles == engines["cond"].profiles == ({"N": 2}, {"N": 4})
    assert engines["denoise_dense_unguided"].profiles == ({"B": 2},)
    assert {p["n"] for p in engines["denoise_pivot_unguided"].profiles} == {1, 2, 3}


def test_one_dense_step_needs_no_engine_for_others(base: Manifest) -> None:
    graphs = {
        n: g for n, g in base.graphs.items() if not n.startswith("dense_0") or g.step_idx == 0
    }
    once = replace(base, model=replace(base.himar, num_iter=1), graphs=graphs)
    engines = planned(once, EngineOptions(leave_out=("decode", "decode_pivot", "encode")))
    assert "dense" not in engines and "decode" not in engines


def test_profiles_are_taken_for_fewer_images_but_not_for_fewer_tokens(base: Manifest) -> None:
    profiles = planned(base, EngineOptions(batches=(1, 4)))["denoise_pivot"].profiles
    chosen = select_profile(profiles, {"B": 3, "2B": 6, "n": 2}, 8)
    assert chosen is not None and profiles[chosen] == {"B": 4, "2B": 8, "n": 2}
    assert select_profile(profiles, {"B": 1, "2B": 2, "n": 4}, 8) is None


def test_kernels_of_the_other_family(base: Manifest) -> None:
    with pytest.raises(BackendUnavailableError, match="kernels are for HMAR"):
        check_tensors(base)


@pytest.mark.parametrize(("halves", "expected"), [(1, [1, 2, 3, 4, 1, 1]), (2, [1, 2, 1, 3, 4, 3])])
def test_padding_repeats_the_first_row_of_each_half(halves: int, expected: list[int]) -> None:
    array = np.array([[1], [2], [3], [4]])
    assert pad_rows(array, 6, halves).ravel().tolist() == expected
    np.testing.assert_array_equal(pad_rows(array, 4, halves), array)
