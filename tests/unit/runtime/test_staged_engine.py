"""What passes between stages: where it lies, and that one engine of several runs them in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runtime.backends.staged_engine import StagedEngine
from runtime.bundle import TensorSpec
from runtime.engine_plan import nbytes
from runtime.stages import ALIGNMENT, Stage, lay_out_arena


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape or ("B", 100))


def stage(inputs: str, outputs: str) -> Stage:
    return Stage(inputs=tuple(map(spec, inputs.split())), outputs=tuple(map(spec, outputs.split())))


CHAIN = [stage("x", "a"), stage("a", "b"), stage("b", "c"), stage("c", "y")]
SKIP = [stage("x", "a b"), stage("a", "c"), stage("b c", "d e"), stage("d e", "y")]
EARLY = [stage("x", "a y"), stage("a x", "b"), stage("b y", "z")]


def test_a_chain_needs_two_places() -> None:
    arena = lay_out_arena(CHAIN, {"B": 3})
    assert set(arena.offsets) == {"a", "b", "c"}
    assert arena.offsets["a"] == arena.offsets["c"] != arena.offsets["b"]
    assert arena.nbytes == 2 * 5 * ALIGNMENT  # 1200 bytes each


@pytest.mark.parametrize("stages", [CHAIN, SKIP, EARLY], ids=("chain", "skip", "early"))
def test_nothing_is_overwritten_before_its_last_reader(stages: list[Stage]) -> None:
    arena = lay_out_arena(stages, {"B": 1})
    held: dict[int, str] = {}
    for part in stages:
        for tensor in part.inputs:
            if tensor.name in arena.offsets:
                place = arena.offsets[tensor.name]
                assert [held[i] for i in range(place, place + 400)] == [tensor.name] * 400
        for tensor in part.outputs:
            if tensor.name in arena.offsets:
                place = arena.offsets[tensor.name]
                assert place % ALIGNMENT == 0
                assert place + nbytes(tensor, {"B": 1}) <= arena.nbytes
                held |= dict.fromkeys(range(place, place + 400), tensor.name)


def test_a_large_tensor_does_not_go_into_a_small_gap() -> None:
    large = Stage(inputs=(spec("b"),), outputs=(spec("big", 1000),))
    stages = [
        stage("x", "a"),
        stage("a", "b"),
        large,
        Stage(inputs=(spec("big", 1000),), outputs=()),
    ]
    offsets = lay_out_arena(stages, {"B": 1}).offsets
    assert offsets["big"] >= offsets["b"] + 400


class Recorder:
    """An engine that keeps its calls."""

    def __init__(self, activation_nbytes: int) -> None:
        self.activation_nbytes = activation_nbytes, 2 * activation_nbytes
        self.profiles = ({"B": 1}, {"B": 3})
        self.calls: list[tuple[Any, ...]] = []
        self.is_closed = False

    def execute(
        self, profile: int, shapes: Any, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> None:
        self.calls.append((profile, dict(shapes), dict(addresses), scratch, stream))

    def close(self) -> None:
        self.is_closed = True


def test_stages_run_in_order_as_one_engine() -> None:
    parts = [Recorder(100), Recorder(700), Recorder(0), Recorder(1)]
    engine = StagedEngine(parts, CHAIN)
    assert engine.profiles == parts[0].profiles
    # scratch of the largest stage, and what passes between stages
    assert engine.activation_nbytes == [(3 + 2 * 2) * ALIGNMENT, (6 + 2 * 5) * ALIGNMENT]
    for _ in range(2):
        engine.execute(1, {"x": (3, 100)}, {"x": 11, "y": 22}, 10_000, 7)
    between = 10_000 + 6 * ALIGNMENT
    a, b = between, between + 5 * ALIGNMENT
    expected = [{"x": 11, "a": a}, {"a": a, "b": b}, {"b": b, "c": a}, {"c": a, "y": 22}]
    for part, names, addresses in zip(parts, "xabc", expected, strict=True):
        # the same addresses at every call, as a CUDA graph needs
        assert part.calls == [(1, {names: (3, 100)}, addresses, 10_000, 7)] * 2
    engine.close()
    assert all(part.is_closed for part in parts)
