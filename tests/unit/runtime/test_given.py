"""The loop with given tokens and a fake backend: what is kept, predicted again, and run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.fake import FakeRunner
from runtime.config import SamplingConfig
from runtime.editing import EditConfig
from runtime.errors import ManifestError
from runtime.pipeline import HMARPipeline
from runtime.trace import Trace
from runtime.trajectory import ScaleEvent
from tests.unit.runtime.manifests import V, himar_manifest, manifest
from tests.unit.runtime.test_trajectory import FUNCTIONS

TWO_PASSES = SamplingConfig(top_k=0, top_p=0, mask_schedule=[[1], [1, 1, 2]])
COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=4)
REGIONS = st.lists(st.booleans(), min_size=4, max_size=4)


def fake() -> FakeRunner:
    return FakeRunner(manifest(), FUNCTIONS)


def tokens_of(batch: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, V, (batch, n)).astype(np.int32) for n in (1, 4)]


def edited(
    keep: Any,
    *,
    edit: EditConfig | None = None,
    sampling: SamplingConfig = TWO_PASSES,
    seed: int = 0,
) -> tuple[FakeRunner, list[ScaleEvent], dict[str, np.ndarray]]:
    """The runner with its calls, the events of a run of its own, and a traced run."""
    keep, trace, events = np.asarray(keep, np.bool_).reshape(-1, 2, 2), Trace(), []
    labels, given_maps = list(range(len(keep))), tokens_of(len(keep))
    pipeline = HMARPipeline(runner := fake(), max_batch=2)
    options: dict[str, Any] = {"edit": edit, "sampling": sampling, "seed": seed}
    pipeline.edit(given_maps, keep, labels, **options, trace=trace)
    runner.calls.clear()
    pipeline.edit(given_maps, keep, labels, **options, on_scale=events.append)
    return runner, events, trace.arrays()


@given(
    keep=st.lists(REGIONS, min_size=1, max_size=3),
    entry=COUNTS,
    seed=st.integers(0, 2**64 - 1),
    keep_scales=st.integers(0, 2),
)
@settings(max_examples=40, deadline=None)
def test_known_tokens_survive_and_the_others_are_predicted_again(
    keep: list[list[bool]], entry: list[int], seed: int, keep_scales: int
) -> None:
    sampling = replace(TWO_PASSES, mask_schedule=[[1], entry])
    edit = EditConfig(keep_scales=keep_scales)
    _, events, trace = edited(keep, edit=edit, sampling=sampling, seed=seed)
    final = {k: np.concatenate([e.tokens for e in events if e.scale_idx == k]) for k in range(2)}
    for k in range(2):
        kept = trace[f"edit_s{k}_keep"]
        np.testing.assert_array_equal(final[k][kept], trace[f"edit_s{k}_given"][kept])
        np.testing.assert_array_equal(final[k], trace[f"s{k}_tokens"])
    kept, num_open = trace["edit_s1_keep"], 4 - trace["edit_s1_keep"].sum(axis=1)
    before = np.full((len(kept), 4), True)
    for j in range(1, len(entry)):
        idx = trace[f"s1_m{j}_idx_to_mask"]
        count = idx.shape[1]
        assert ((idx >= 0).sum(axis=1) == -(-count * num_open // 4)).all()
        masked = np.zeros_like(kept)
        for row, positions in enumerate(idx):
            masked[row, positions[positions >= 0]] = True
        assert not (masked & kept).any() and not (masked & ~before).any(), "nested, among unknown"
        before = masked


def test_the_least_confident_unknown_tokens_go_first() -> None:
    _, _, trace = edited([True, False, False, False])
    conf = trace["s1_ns_conf"][0]
    assert np.isinf(conf[0]) and np.isfinite(conf[1:]).all()
    expected = 1 + np.argsort(conf[1:], kind="stable")
    # 3 of 4 tokens, of which one is known: 3 of 3; then 2 of 4
    assert trace["s1_m1_idx_to_mask"][0].tolist() == expected.tolist()
    assert set(trace["s1_m2_idx_to_mask"][0]) < set(expected.tolist())


def test_scales_without_unknown_tokens_cost_nothing() -> None:
    runner, _, _ = edited([False] * 4, edit=EditConfig(keep_scales=1))
    masked = [call for call in runner.calls if call.startswith("mask")]
    assert masked == ["mask_input1", "mask1"] * 2
    assert runner.calls[0] == "quant0" and "ns0" not in runner.calls and "ns1" in runner.calls
    runner, _, _ = edited([True] * 4)
    assert runner.calls == ["quant0", "quant1", "decode"]


def test_a_trace_has_every_pass() -> None:
    _, _, trace = edited([[True] * 4, [False] * 4, [True] * 4])
    assert {len(value) for value in trace.values()} == {3}
    assert {"s0_ns_drawn", "s1_ns_conf", "s1_m2_tokens"} <= set(trace)
    assert (trace["s1_m1_idx_to_mask"][0] == -1).all()


def test_the_published_method_replaces_what_is_committed_and_no_more() -> None:
    keep = [True, False, False, True]
    edit = EditConfig(method="published")
    runner, events, trace = edited(keep, edit=edit, seed=3)
    plain = Trace()
    HMARPipeline(fake(), max_batch=2).generate([0], sampling=TWO_PASSES, seed=3, trace=plain)
    # the fake's logits do not depend on the image, so that the generation is the plain one
    for name, value in plain.arrays().items():
        np.testing.assert_array_equal(trace[name], value, name)
    assert events[0].tokens.tolist() == trace["edit_s0_given"].tolist(), "a tiny scale, kept"
    expected = np.where(keep, trace["edit_s1_given"], trace["s1_tokens"])
    np.testing.assert_array_equal(events[1].tokens, expected)
    assert runner.calls.count("mask1") == 2


@pytest.mark.parametrize("rounds", [1, 3])
def test_refining_starts_from_the_given_tokens(rounds: int) -> None:
    edit = EditConfig(keep_scales=1, refine_rounds=rounds)
    runner, events, trace = edited([True, False, False, False], edit=edit)
    np.testing.assert_array_equal(trace["s1_ns_tokens"], trace["edit_s1_given"])
    assert runner.calls.count("ns1") == 1 and runner.calls.count("mask1") == 2 * rounds
    assert f"s1_m{2 * rounds}_tokens" in trace and f"s1_m{2 * rounds + 1}_tokens" not in trace
    for n in range(rounds):  # each round may change every unknown token
        assert trace[f"s1_m{2 * n + 1}_idx_to_mask"].shape == (1, 3)
    assert events[1].tokens[0, 0] == trace["edit_s1_given"][0, 0]


def test_what_an_edit_refuses() -> None:
    pipeline, keep = HMARPipeline(fake(), max_batch=2), np.ones((2, 2), np.bool_)
    with pytest.raises(ValueError, match=r"maps of .* tokens for 2 images, got"):
        pipeline.edit(tokens_of(1), keep, [1, 2])
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.15, got 0\.\.16"):
        pipeline.edit([np.zeros((1, 1), int), np.full((1, 4), 16)], keep, [1])
    with pytest.raises(ValueError, match="there are 2 images for 1 labels"):
        pipeline.edit(np.zeros((2, 4, 4, 3), np.uint8), keep, [1])
    with pytest.raises(ValueError, match="blending needs images, got token maps"):
        pipeline.edit(tokens_of(1), keep, [1], edit=EditConfig(feather_px=1))
    with pytest.raises(ValueError, match="label 99 is out of range"):
        pipeline.edit(tokens_of(1), keep, [99])
    assert pipeline.runner.calls == []  # type: ignore[attr-defined]


def test_another_family_is_refused() -> None:
    pipeline = HMARPipeline(FakeRunner(himar_manifest(), {}), max_batch=2)
    for use in (
        lambda: pipeline.edit(tokens_of(1), np.ones((2, 2), np.bool_), [1]),
        lambda: pipeline.score(tokens_of(1), [1]),
    ):
        with pytest.raises(ManifestError, match="needs a bundle of HMAR; this one is of family"):
            use()
