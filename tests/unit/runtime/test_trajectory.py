"""The loop with a fake backend: which graphs run, in which order, on what."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import numpy as np
import pytest

from runtime.backends.fake import FakeRunner
from runtime.bundle import GraphSpec
from runtime.config import SamplingConfig
from runtime.errors import GenerationCancelled
from runtime.pipeline import HMARPipeline
from runtime.trace import Trace
from runtime.trajectory import ScaleEvent
from tests.unit.runtime.manifests import CLASSES, CVAE, PATCH_NUMS, V, manifest

Feeds = Mapping[str, np.ndarray]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def logits(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    rows, pn = (
        len(feeds["ada_ns" if "ada_ns" in feeds else "ada_mask"]),
        PATCH_NUMS[spec.scale_idx or 0],
    )
    values = np.random.default_rng(pn).standard_normal((1, pn * pn, V)).astype(np.float32)
    return [np.repeat(values, rows, axis=0)]


def quant(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    results = [feeds["f_hat"] + 1]
    return results if len(spec.outputs) == 1 else [*results, zeros(len(feeds["f_hat"]), 4, CVAE)]


def decode(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
    return [np.broadcast_to(feeds["f_hat"][:, :1, :1, :1] / 4, (len(feeds["f_hat"]), 3, 4, 4))]


FUNCTIONS = {
    "cond": lambda spec, feeds: [feeds["label"]] * 3,
    "ns": logits,
    "mask": logits,
    "mask_input": lambda spec, feeds: [zeros(len(feeds["tokens"]), 4, CVAE)],
    "quant": quant,
    "decode": decode,
}


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(manifest(), FUNCTIONS)


def test_order_of_graphs(runner: FakeRunner) -> None:
    HMARPipeline(runner, max_batch=8).generate([1, 2])
    masked = ["mask_input1", "mask1"]
    # the first scale has no unconditional half
    assert runner.calls == ["cond", "ns0", "quant0", "cond", "ns1", *masked, "quant1", "decode"]


def test_no_masked_passes(runner: FakeRunner) -> None:
    HMARPipeline(runner, max_batch=8).generate(
        [1], sampling=SamplingConfig(top_k=0, mask_schedule=None)
    )
    assert not [call for call in runner.calls if call.startswith("mask")]


def test_two_masked_passes(runner: FakeRunner) -> None:
    sampling = SamplingConfig(top_k=0, mask_schedule=[[1], [1, 1, 2]])
    trace = Trace()
    HMARPipeline(runner, max_batch=8).generate([1], sampling=sampling, trace=trace)
    arrays = trace.arrays()
    assert runner.calls.count("mask1") == 2
    assert arrays["s1_m1_idx_to_mask"].shape == (1, 3) and arrays["s1_m2_idx_to_mask"].shape == (
        1,
        2,
    )
    assert set(arrays["s1_m2_idx_to_mask"][0]) < set(arrays["s1_m1_idx_to_mask"][0])
    assert "s1_ns_raw" not in arrays


def test_guided_batch_is_conditional_half_first(runner: FakeRunner) -> None:
    labels: list[np.ndarray] = []
    runner.functions = {
        **FUNCTIONS,
        "cond": lambda spec, feeds: labels.append(feeds["label"]) or [feeds["label"]] * 3,
    }
    HMARPipeline(runner, max_batch=8).generate([3, -1])
    assert [value.tolist() for value in labels] == [[3, CLASSES], [3, CLASSES, CLASSES, CLASSES]]


def test_requests_are_split_to_what_fits(runner: FakeRunner) -> None:
    images = HMARPipeline(runner, max_batch=2).generate([1, 2, 3, 4, 5])
    assert runner.calls.count("decode") == 3
    assert images.shape == (5, 4, 4, 3) and images.dtype == np.uint8


def test_trace_of_a_split_batch_keeps_the_halves_together() -> None:
    trace = Trace(logits=True)
    for chunk in (np.array([[1], [2], [-1], [-2]]), np.array([[3], [-3]])):
        trace("s0_ns_raw", chunk)
        trace("s0_tokens", chunk[: len(chunk) // 2])
    arrays = trace.arrays()
    assert arrays["s0_ns_raw"].ravel().tolist() == [1, 2, 3, -1, -2, -3]
    assert arrays["s0_tokens"].ravel().tolist() == [1, 2, 3]


def test_callback_after_every_scale_with_a_lazy_preview(runner: FakeRunner) -> None:
    events: list[ScaleEvent] = []
    HMARPipeline(runner, max_batch=2).generate([1, 2, 3], on_scale=events.append)
    assert [(e.scale_idx, e.pn, e.images) for e in events] == [
        (0, 1, slice(0, 2)), (1, 2, slice(0, 2)), (0, 1, slice(2, 3)), (1, 2, slice(2, 3)),
    ]  # fmt: skip
    assert events[0].tokens.shape == (2, 1) and runner.calls.count("decode") == 2
    preview = events[0].preview()
    assert preview.shape == (2, 4, 4, 3) and runner.calls.count("decode") == 3
    assert preview[0, 0, 0, 0] == 64  # f_hat is 1 after scale 0


@pytest.mark.parametrize("label", [CLASSES, -2, 1.0, "cat", True])
def test_label_out_of_range(runner: FakeRunner, label: object) -> None:
    with pytest.raises(ValueError, match=rf"label .* is out of range: 0..{CLASSES - 1}, or -1"):
        HMARPipeline(runner, max_batch=2).generate([1, label])  # type: ignore[list-item]
    assert runner.calls == []


@pytest.mark.parametrize("index", [[0], [0, -1], [0, 2**64]])
def test_bad_image_index(runner: FakeRunner, index: list[int]) -> None:
    with pytest.raises(ValueError, match="image_index"):
        HMARPipeline(runner, max_batch=2).generate([1, 2], image_index=index)


def test_no_labels(runner: FakeRunner) -> None:
    with pytest.raises(ValueError, match="labels is empty"):
        HMARPipeline(runner, max_batch=2).generate([])


def test_runner_names_what_a_graph_takes(runner: FakeRunner) -> None:
    with pytest.raises(ValueError, match=r"graph decode takes \['f_hat'\], got \['x'\]"):
        runner.run("decode", {"x": zeros(1)})


@pytest.mark.parametrize(
    ("asked", "ran"),
    [
        (1, []),
        (4, ["cond", "ns0", "quant0", "cond", "ns1", "mask_input1"]),
        (5, ["cond", "ns0", "quant0", "cond", "ns1", "mask_input1", "mask1", "quant1"]),
    ],
    ids=("at the start", "before a masked pass", "before decoding"),
)
def test_cancelled_between_steps(runner: FakeRunner, asked: int, ran: list[str]) -> None:
    pipeline = HMARPipeline(runner, max_batch=2)
    whole = pipeline.generate([1, 2, 3])
    runner.calls.clear()
    answers = [False] * (asked - 1) + [True]
    with pytest.raises(GenerationCancelled, match="before images 0 to 1 were done"):
        pipeline.generate([1, 2, 3], cancel=lambda: answers.pop(0))
    assert runner.calls == ran and not answers
    np.testing.assert_array_equal(pipeline.generate([1, 2, 3]), whole)


def test_interrupted_in_a_graph(runner: FakeRunner) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it
    pipeline = HMARPipeline(runner, max_batch=2)
    whole = pipeline.generate([1])

    def interrupted(spec: GraphSpec, feeds: Feeds) -> list[np.ndarray]:
        signal.raise_signal(signal.SIGINT)
        return quant(spec, feeds)

    runner.functions = {**FUNCTIONS, "quant": interrupted}
    with pytest.raises(KeyboardInterrupt):
        pipeline.generate([1])
    signal.signal(signal.SIGINT, before)
    runner.functions = FUNCTIONS
    np.testing.assert_array_equal(pipeline.generate([1]), whole)


def test_f_hat_is_copied_to_the_host_for_a_trace_alone(
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    monkeypatch.setattr(runner, "numpy", lambda value: copied.append(value.ndim) or value)
    HMARPipeline(runner, max_batch=1).generate([1])
    # three passes' logits, a map, an h, an image
    assert sorted(copied) == [3, 3, 3, 3, 3, 4]
    copied.clear()
    HMARPipeline(runner, max_batch=1).generate([1], trace=Trace())
    assert copied.count(4) == 4  # the image, again when it is recorded, and f_hat of both scales
