"""Hi-MAR's loop with a fake backend: which graphs run, in which order, on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.backends.fake import FakeRunner
from runtime.bundle import GraphSpec
from runtime.errors import BundleError, GenerationCancelled, PipelineUseError
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_pipeline import HiMARPipeline, StepEvent
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from tests.unit.runtime.manifests import CLASSES, CVAE, C, himar_manifest

Feeds = Mapping[str, np.ndarray]
P, N, STEPS = 16, 64, 16
UNGUIDED = HiMARSamplingConfig(
    num_iter=1, cfg=1.0, re_cfg=1.0, pivot_diffusion_steps="2", dense_diffusion_steps="3"
)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def pivot(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    rows, n = feeds["predicted"].shape
    z = np.full((rows, n, C), 1.0 + (spec.step_idx or 0), np.float32)
    return [z, zeros(rows, n, 3)]


def denoise(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    return [feeds["x"] * 0.1] * len(spec.outputs)


def decode(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    side = 64 if spec.kind == "decode" else 32
    means = feeds["tokens"].mean(axis=(1, 2)).reshape(-1, 1, 1, 1)
    return [np.broadcast_to(np.tanh(means), (len(means), 3, side, side)).astype(np.float32)]


FUNCTIONS = {
    "cond": lambda spec, feeds: [np.repeat(feeds["label"][:, None], C, axis=1)],
    "pivot": pivot,
    "dense": lambda spec, feeds: [zeros(len(feeds["cond"]), N, 3)],
    "denoise_pivot": denoise,
    "denoise_pivot_unguided": denoise,
    "denoise_dense": denoise,
    "denoise_dense_unguided": denoise,
    "decode": decode,
    "decode_pivot": decode,
    "encode": lambda spec, feeds: [zeros(len(feeds["image"]), N, CVAE)] * 2,
}


class RecordingRunner(FakeRunner):
    """Keeps what every graph was fed."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(himar_manifest(**changes), FUNCTIONS)
        self.fed: list[tuple[str, dict[str, np.ndarray]]] = []

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> list[Any]:
        self.fed.append((graph, dict(feeds)))
        return super()._run(graph, feeds)


@pytest.fixture
def runner() -> RecordingRunner:
    return RecordingRunner()


def test_order_of_graphs(runner: RecordingRunner) -> None:
    Pipeline.of(runner, max_batch=8).generate([1, 2])
    pivots = [c for s in range(STEPS) for c in (f"pivot_{s:02d}", *["denoise_pivot"] * 2)]
    dense = [c for k in range(2) for c in (f"dense_{k:02d}", *["denoise_dense"] * 3)]
    assert runner.calls == ["cond", *pivots, *dense, "decode"]


def test_another_number_of_dense_steps(runner: RecordingRunner) -> None:
    sampling = HiMARSamplingConfig(num_iter=3, pivot_diffusion_steps="2", dense_diffusion_steps="2")
    HiMARPipeline(runner, max_batch=8).generate([1], sampling=sampling)
    assert [c for c in runner.calls if c.startswith("dense")] == ["dense_00", "dense", "dense"]


def test_guidance_is_on_or_off_by_phase(runner: RecordingRunner) -> None:
    pipeline = HiMARPipeline(runner, max_batch=8)
    for cfg, re_cfg in ((1.0, 2.0), (2.0, 1.0)):
        runner.fed.clear()
        sampling = HiMARSamplingConfig(
            num_iter=2, cfg=cfg, re_cfg=re_cfg,
            pivot_diffusion_steps="2", dense_diffusion_steps="2",
        )  # fmt: skip
        pipeline.generate([3], sampling=sampling)
        for graph, feeds in runner.fed:
            strength = re_cfg if "pivot" in graph else cfg
            if graph.startswith("denoise"):
                assert graph.endswith("_unguided") == (strength == 1)
                assert ("scale" in feeds) == (strength != 1)
            elif "cond" in feeds:
                rows = [3, CLASSES][: 1 + (strength != 1)]
                np.testing.assert_array_equal(feeds["cond"][:, 0], rows)


def test_known_tokens_and_where_they_come_from(runner: RecordingRunner) -> None:
    """`known` ascends, `source` is its inverse, and what is predicted is known ever after."""
    HiMARPipeline(runner, max_batch=8).generate([1, 2], sampling=UNGUIDED)
    known_before = [set(), set()]
    for graph, feeds in runner.fed:
        if not graph.startswith("pivot"):
            continue
        for b, known in enumerate(known_before):
            given = feeds["known"][b].tolist() if "known" in feeds else []
            assert given == sorted(known)
            source = feeds["source"][b]
            assert [source[p] for p in given] == list(range(len(given)))
            assert (source < 0).sum() == P + N - len(given)
            known.update(feeds["predicted"][b].tolist())
    assert known_before == [set(range(P))] * 2


def test_z_is_kept_from_the_step_that_predicts(runner: RecordingRunner) -> None:
    HiMARPipeline(runner, max_batch=8).generate([1, 2])
    steps = np.zeros((2, P))
    for graph, feeds in runner.fed:
        if graph.startswith("pivot"):
            predicted = feeds["predicted"][:2]
            np.put_along_axis(steps, predicted, 1.0 + int(graph[-2:]), axis=1)
        if graph.startswith("dense"):
            both = np.concatenate((steps, steps))
            np.testing.assert_array_equal(feeds["small_z"], np.repeat(both[..., None], C, axis=2))


def test_known_dense_tokens_are_held(runner: RecordingRunner) -> None:
    trace = Trace()
    HiMARPipeline(runner, max_batch=8).generate([1, 2], trace=trace)
    arrays = trace.arrays()
    before, after = arrays["p2.tokens"][1:]
    is_known = ~arrays["p2.mask"][1][:, P:]
    assert is_known.any() and not is_known.all()
    np.testing.assert_array_equal(after[is_known], before[is_known])
    assert (after[~is_known] != before[~is_known]).all()


def test_trace_has_the_shapes_of_the_golden_files(runner: RecordingRunner) -> None:
    pipeline, whole, split = HiMARPipeline(runner, max_batch=8), Trace(), Trace()
    pipeline.generate([1, 2, 3], trace=whole)
    HiMARPipeline(runner, max_batch=2).generate([1, 2, 3], trace=split)
    expected = {
        "p1.mask": (STEPS, 3, P + N), "p1.tokens": (STEPS + 1, 3, P, CVAE),
        "p2.mask": (2, 3, P + N), "p2.tokens": (3, 3, N, CVAE),
        "small_tokens": (3, CVAE, 4, 4), "dense_tokens": (3, CVAE, 8, 8),
        "image": (3, 3, 64, 64), "small_image_64": (3, 3, 64, 64),
    }  # fmt: skip
    arrays, parts = whole.arrays(), split.arrays()
    assert {name: array.shape for name, array in arrays.items()} == expected
    for name, array in arrays.items():
        assert array.dtype == (np.bool_ if name.endswith("mask") else np.float32)
        np.testing.assert_array_equal(parts[name], array)


def test_an_image_alone_and_in_a_batch(runner: RecordingRunner) -> None:
    pipeline = HiMARPipeline(runner, max_batch=8)
    three = pipeline.generate_tokens([1, 2, 3], seed=4)
    alone = pipeline.generate_tokens([2], seed=4, image_index=[1])
    np.testing.assert_array_equal(three.pivots[1:2], alone.pivots)
    np.testing.assert_array_equal(three.dense[1:2], alone.dense)


def test_callback_after_every_step_with_a_lazy_preview(runner: RecordingRunner) -> None:
    events: list[StepEvent] = []
    pipeline = HiMARPipeline(runner, max_batch=2)
    images = pipeline.generate([1, 2, 3], on_step=events.append)
    seen = [(e.phase, e.step_idx, e.num_steps, e.images.start) for e in events]
    steps = [("pivot", s, STEPS) for s in range(STEPS)] + [("dense", k, 2) for k in range(2)]
    assert seen == [(*step, start) for start in (0, 2) for step in steps]
    assert runner.calls.count("decode") == 2 and "decode_pivot" not in runner.calls
    last_pivots, last = events[STEPS - 1], events[STEPS + 1]
    np.testing.assert_array_equal(last.preview(), images[:2])
    assert not (last_pivots.tokens == 0).any()
    small = pipeline.decode_small(last_pivots.tokens)
    assert small.shape == (2, 64, 64, 3) and small.dtype == np.uint8
    np.testing.assert_array_equal(last_pivots.preview(), small)


def test_vectors_in_place_of_classes(runner: RecordingRunner) -> None:
    pipeline = HiMARPipeline(runner, max_batch=2)
    vectors = np.arange(3 * C, dtype=np.float64).reshape(3, C)
    pipeline.generate(cond=vectors)
    fed = [feeds["cond"] for graph, feeds in runner.fed if graph == "pivot_00"]
    none = np.full((2, C), CLASSES)
    np.testing.assert_array_equal(fed[0], np.concatenate((vectors[:2], none)))
    np.testing.assert_array_equal(fed[1], np.concatenate((vectors[2:], none[:1])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either labels or cond"),
        ({"labels": [1], "cond": zeros(1, C)}, "give either labels or cond"),
        ({"labels": []}, "labels is empty"),
        ({"labels": [CLASSES]}, "label 10 is out of range"),
        ({"cond": zeros(1, C + 1)}, r"cond must be one vector of 8 numbers per image, \(B, 8\)"),
        ({"cond": zeros(0, C)}, "cond must be one vector"),
        ({"cond": np.full((1, C), np.nan)}, "not finite"),
        ({"labels": [1], "image_index": [0, 1]}, "image_index has 2 entries for 1 labels"),
        ({"labels": [1], "seed": -1}, "seed must be in"),
    ],
)
def test_refused(runner: RecordingRunner, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiMARPipeline(runner, max_batch=2).generate(**arguments)
    assert not any(call.startswith("pivot") for call in runner.calls)


def test_a_model_without_classes() -> None:
    runner = RecordingRunner(model=replace(himar_manifest().himar, num_classes=0))
    pipeline = HiMARPipeline(runner, max_batch=2)
    pipeline.generate([-1])
    pipeline.generate(cond=zeros(1, C))
    with pytest.raises(ValueError, match="this bundle has no classes: give cond, one vector per"):
        pipeline.generate([-1, 3])


@pytest.mark.parametrize("verb", ["score", "edit"])
def test_verbs_of_the_other_family(runner: RecordingRunner, verb: str) -> None:
    with pytest.raises(BundleError, match=f"{verb} needs a bundle of HMAR; this one is of Hi-MAR"):
        getattr(HiMARPipeline(runner, max_batch=2), verb)([1])


def test_encode_and_decode(runner: RecordingRunner) -> None:
    pipeline = HiMARPipeline(runner, max_batch=2)
    tokens = pipeline.encode(np.zeros((3, 64, 64, 3), np.uint8))
    assert tokens.shape == (3, N, CVAE)
    assert pipeline.decode(tokens).shape == (3, 64, 64, 3)
    with pytest.raises(ValueError, match=r"images must be \(B, 64, 64, 3\) uint8"):
        pipeline.encode(np.zeros((1, 32, 32, 3), np.uint8))
    pipeline.close()
    for use in (lambda: pipeline.decode(tokens), lambda: pipeline.generate([1])):
        with pytest.raises(PipelineUseError, match="is closed"):
            use()


@pytest.mark.parametrize(
    ("asked", "last"), [(1, "cond"), (3, "denoise_pivot"), (50, "dense_00"), (56, "denoise_dense")]
)
def test_cancelled_between_calls(runner: RecordingRunner, asked: int, last: str) -> None:
    pipeline = HiMARPipeline(runner, max_batch=2)
    whole = pipeline.generate([1, 2, 3])
    runner.calls.clear()
    answers = [False] * (asked - 1) + [True]
    with pytest.raises(GenerationCancelled, match="before images 0 to 1 were done"):
        pipeline.generate([1, 2, 3], cancel=lambda: answers.pop(0))
    assert not answers and runner.calls[-1] == last
    np.testing.assert_array_equal(pipeline.generate([1, 2, 3]), whole)
