from __future__ import annotations

import dataclasses

import pytest

from runtime.bundle import GraphSpec, Kind, TensorSpec
from runtime.engine_plan import (
    EngineOptions,
    bind,
    nbytes,
    plan_engines,
    plan_profiles,
    resolve,
    select_profile,
    with_totals,
)
from tests.unit.runtime.manifests import manifest

PATCH_NUMS = (1, 2, 3)


def spec(kind: Kind, **inputs: tuple[int | str, ...]) -> GraphSpec:
    return GraphSpec(
        kind=kind,
        inputs=tuple(TensorSpec(n, "float32", shape) for n, shape in inputs.items()),
        outputs=(),
        file="graph.onnx",
        sha256="0" * 64,
        nbytes=1,
    )


def test_a_trunk_has_one_profile_per_scale_and_batch() -> None:
    trunk = spec("ns_trunk", x=("N", "l", 8), cu_seqlens=("blocks_plus_1",))
    profiles = plan_profiles(trunk, PATCH_NUMS, EngineOptions(batches=(1, 4)))
    assert profiles == tuple(
        {"N": n, "l": pn * pn, "blocks_plus_1": 2}
        for pn in PATCH_NUMS
        for n in ((1, 4) if pn == 1 else (2, 8))
    )


def test_masked_passes_start_at_the_second_scale() -> None:
    trunk = spec("mask_trunk", x=("N", "l", 8))
    profiles = plan_profiles(trunk, PATCH_NUMS, EngineOptions())
    assert profiles == ({"N": 1, "l": 4}, {"N": 1, "l": 9})


def test_rows_of_guided_and_unguided_passes() -> None:
    def rows(kind: Kind, symbol: str = "N", **options: object) -> list[int]:
        planned = EngineOptions(batches=(1, 2), **options)  # type: ignore[arg-type]
        return [p[symbol] for p in plan_profiles(spec(kind, x=(symbol,)), PATCH_NUMS, planned)]

    assert rows("cond") == rows("cond", guidance="any") == [2, 4]
    assert rows("embed_first") == rows("mask") == [1, 2]
    assert rows("ns") == [2, 4]
    assert rows("embed_first", guidance="any") == rows("ns", guidance="any") == [1, 2, 4]
    assert rows("cond", extra=("score",)) == [1, 2, 4]
    assert rows("score", extra=("score",)) == rows("decode", "B") == [1, 2]


def test_a_prefix_grows_over_scales() -> None:
    prefix = spec("ns_prefix", map=("N", "T_minus_1", 4), cu_seqlens=("blocks_plus_1",))
    profiles = plan_profiles(prefix, PATCH_NUMS, EngineOptions())
    assert profiles == (
        {"N": 2, "T_minus_1": 4, "blocks_plus_1": 3},
        {"N": 2, "T_minus_1": 13, "blocks_plus_1": 4},
    )
    assert with_totals(profiles[1])["T"] == 14


@pytest.mark.parametrize(("layout", "kinds"), [("profiles", set()), ("per-scale", {"ns", "mask"})])
def test_kinds_of_a_layout(layout: str, kinds: set[str]) -> None:
    options = EngineOptions(layout=layout, leave_out=("decode",))  # type: ignore[arg-type]
    planned = {engine.kind for engine in plan_engines(manifest(), options)}
    assert planned == {"cond", "quant", "mask_input"} | kinds


def test_the_smallest_profile_that_fits_is_selected() -> None:
    profiles = [{"N": n, "l": length} for length in (4, 9) for n in (16, 2)]
    assert select_profile(profiles, {"N": 2, "l": 4}, 8) == 1
    assert select_profile(profiles, {"N": 3, "l": 9}, 8) == 2
    assert select_profile(profiles, {"N": 3, "l": 9}, 7) is None
    assert select_profile(profiles, {"N": 17, "l": 9}, 64) is None
    assert select_profile(profiles, {"N": 2, "l": 1}, 8) is None


def test_sizes_from_shapes() -> None:
    specs = (TensorSpec("x", "float16", ("N", "l", 8)), TensorSpec("positions", "int32", ("l",)))
    dims = bind(specs, {"x": (2, 9, 8), "positions": (9,)})
    assert dims == {"N": 2, "l": 9}
    assert resolve(specs[0], dims) == (2, 9, 8) and nbytes(specs[0], dims) == 2 * 9 * 8 * 2
    with pytest.raises(ValueError, match=r"positions must be .*'l': 9.* got \(4,\)"):
        bind(specs, {"x": (2, 9, 8), "positions": (4,)})
    with pytest.raises(ValueError, match=r"x must be .*got \(9, 8\)"):
        bind(specs, {"x": (9, 8), "positions": (9,)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batches": ()}, "batches must be"),
        ({"batches": (0,)}, "batches must be"),
        ({"batches": (8, 1)}, "ascend"),
        ({"layout": "wide"}, "layout must be"),
        ({"extra": ("decode",)}, "extra graphs are"),
        ({"leave_out": ("decoder",)}, "unknown"),
        ({"workspace_bytes": 0}, "workspace_bytes"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_options_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(EngineOptions(), **change)  # type: ignore[arg-type]
