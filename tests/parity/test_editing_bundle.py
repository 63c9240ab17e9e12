"""Edits of an exported bundle: what survives, what equals a generation, and what is recorded."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.config import SamplingConfig
from runtime.editing import EditConfig
from runtime.pipeline import Pipeline
from runtime.schedule import cosine_entry
from runtime.trace import Trace
from runtime.trajectory import ScaleEvent
from tests.golden_data import Case

PATCH_NUMS, SIDE = (1, 2, 3, 4), 64
SCHEDULES = st.none() | st.builds(
    lambda passes: [
        [1],
        *(cosine_entry(pn * pn, n) for pn, n in zip((2, 3, 4), passes, strict=True)),
    ],
    st.tuples(*[st.integers(0, 3)] * 3),
)
SAMPLINGS = st.builds(
    SamplingConfig,
    mask_schedule=SCHEDULES,
    cfg=st.sampled_from((0.0, 1.5)),
    top_k=st.sampled_from((0, 9)),
    top_p=st.sampled_from((0.0, 0.9)),
)
LABELS = st.integers(-1, 9)
SEEDS = st.integers(0, 2**64 - 1)
FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pictures(batch: int) -> np.ndarray:
    """Smooth pictures, so that their tokens vary."""
    rng = np.random.default_rng(batch)
    return rng.integers(0, 256, (batch, 4, 4, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)


def masks(side: int, batch: int, seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, side, side)) < share


@pytest.fixture(scope="module")
def tokens(tiny_pipeline: Pipeline) -> list[np.ndarray]:
    return tiny_pipeline.encode(pictures(3))


@given(
    share=st.floats(0.3, 1),
    labels=st.tuples(LABELS, LABELS, LABELS),
    seed=SEEDS,
    sampling=SAMPLINGS,
    keep_scales=st.integers(0, 4),
)
@FEW
def test_known_tokens_survive(
    tiny_pipeline: Pipeline,
    tokens: list[np.ndarray],
    share: float,
    labels: tuple[int, ...],
    seed: int,
    sampling: SamplingConfig,
    keep_scales: int,
) -> None:
    keep, events = masks(4, 3, seed % 1000, share), list[ScaleEvent]()
    tiny_pipeline.edit(
        pictures(3),
        keep,
        labels,
        edit=EditConfig(keep_scales=keep_scales),
        seed=seed,
        sampling=sampling,
        on_scale=events.append,
    )
    for k, pn in enumerate(PATCH_NUMS):
        known = np.ones((3, pn, pn), np.bool_)
        for b, y, x in zip(*np.nonzero(~keep), strict=True):  # cells that the lost token touches
            touched = [
                [i for i in range(pn) if i * 4 < (at + 1) * pn and (i + 1) * 4 > at * pn]
                for at in (y, x)
            ]
            known[np.ix_([b], *touched)] = k < keep_scales
        known = known.reshape(3, -1)
        np.testing.assert_array_equal(events[k].tokens[known], tokens[k][known])


@given(labels=st.lists(LABELS, min_size=1, max_size=3), seed=SEEDS, sampling=SAMPLINGS)
@FEW
def test_with_nothing_known_it_is_a_generation(
    tiny_pipeline: Pipeline, labels: list[int], seed: int, sampling: SamplingConfig
) -> None:
    edits, plain = Trace(), Trace()
    nothing = np.zeros((4, 4), np.bool_)
    options: dict[str, Any] = {"seed": seed, "sampling": sampling}
    edited = tiny_pipeline.edit(pictures(len(labels)), nothing, labels, **options, trace=edits)
    generated = tiny_pipeline.generate(labels, **options, trace=plain)
    np.testing.assert_array_equal(edited, generated)
    recorded = edits.arrays()
    for name, value in plain.arrays().items():
        np.testing.assert_array_equal(recorded[name], value, name)
    assert set(recorded) - set(plain.arrays()) == {
        f"edit_s{k}_{what}" for k in range(4) for what in ("given", "keep")
    }


@pytest.mark.parametrize("method", ["known", "published"])
def test_with_everything_known_it_is_the_reconstruction(
    tiny_pipeline: Pipeline, method: Any
) -> None:
    images, runner = pictures(2), tiny_pipeline.runner
    edit = EditConfig(method=method)
    edited = tiny_pipeline.edit(images, np.ones((SIDE, SIDE), np.bool_), [1, -1], edit=edit, seed=9)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    f_hat = runner.run("encode", {"image": pixels})["f_hat"]
    decoded = runner.numpy(runner.run("decode", {"f_hat": f_hat})["image"])
    expected = np.rint(decoded.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    assert np.abs(edited.astype(int) - expected).max() <= 1  # f_hat summed in another order


def test_an_edit_does_not_depend_on_its_batch(tiny_pipeline: Pipeline) -> None:
    images, keep, labels = pictures(3), masks(4, 3, 5, 0.6), [1, 2, 3]
    sampling = dataclasses.replace(
        tiny_pipeline.defaults, mask_schedule=[cosine_entry(pn * pn, 2) for pn in PATCH_NUMS]
    )
    together = tiny_pipeline.edit(images, keep, labels, seed=4, sampling=sampling)
    for b in range(3):
        (alone,) = tiny_pipeline.edit(
            images[b : b + 1],
            keep[b],
            [labels[b]],
            seed=4,
            sampling=sampling,
            image_index=[b],
        )
        np.testing.assert_array_equal(alone, together[b])


def test_the_published_method_commits_the_given_rows(
    tiny_pipeline: Pipeline, tokens: list[np.ndarray]
) -> None:
    trace, keep = Trace(), masks(4, 3, 1, 0.5)
    tiny_pipeline.edit(
        tokens, keep, [1, 2, 3], edit=EditConfig(method="published"), seed=2, trace=trace
    )
    arrays, runner = trace.arrays(), tiny_pipeline.runner
    f_hat: Any = np.zeros_like(arrays["s0_f_hat"])
    for k, pn in enumerate(PATCH_NUMS):
        np.testing.assert_array_equal(arrays[f"edit_s{k}_given"], tokens[k])
        kept = arrays[f"edit_s{k}_keep"]
        assert kept.dtype == np.bool_ and kept.shape == (3, pn * pn)
        committed = np.where(kept, tokens[k], arrays[f"s{k}_tokens"]).reshape(3, pn, pn)
        graph = tiny_pipeline.manifest.graph("quant", k)
        f_hat = runner.run(graph, {"tokens": committed, "f_hat": f_hat})["f_hat_out"]
        np.testing.assert_array_equal(arrays[f"s{k}_f_hat"], runner.numpy(f_hat))
    assert arrays["edit_s0_keep"].all()
    np.testing.assert_array_equal(arrays["edit_s3_keep"], keep.reshape(3, -1))
    assert (
        arrays["s3_tokens"] != np.where(keep.reshape(3, -1), tokens[3], arrays["s3_tokens"])
    ).any()


def test_refining_changes_the_region_alone(
    tiny_pipeline: Pipeline, tokens: list[np.ndarray]
) -> None:
    keep, events = np.ones((4, 4), np.bool_), list[ScaleEvent]()
    keep[:2, :2] = False
    sampling = dataclasses.replace(tiny_pipeline.defaults, mask_schedule=[[1], [4], [9], [4, 12]])
    edit = EditConfig(keep_scales=2, refine_rounds=2)
    tiny_pipeline.edit(
        tokens, keep, [1, 2, 3], edit=edit, sampling=sampling, seed=6, on_scale=events.append
    )
    for k in (0, 1, 2):  # kept, or without masked passes
        np.testing.assert_array_equal(events[k].tokens, tokens[k])
    is_changed = (events[3].tokens != tokens[3]).reshape(3, 4, 4)
    assert is_changed[:, :2, :2].any() and not is_changed[:, keep].any()


def test_blending_leaves_no_error_outside(tiny_pipeline: Pipeline) -> None:
    images, keep = pictures(2), masks(SIDE, 2, 0, 0.5)
    edit = EditConfig(dilation_px=1, feather_px=2)
    blended = tiny_pipeline.edit(images, keep, [1, 2], edit=edit)
    np.testing.assert_array_equal(blended[keep], images[keep])
    assert (blended != images).any()


def test_images_score_as_their_tokens(tiny_pipeline: Pipeline, tokens: list[np.ndarray]) -> None:
    by_image, by_token = (tiny_pipeline.score(x, [1, -1, 3]) for x in (pictures(3), tokens))
    np.testing.assert_array_equal(by_image.ns_log_prob, by_token.ns_log_prob)


def test_scores_by_scale_are_the_golden_pyramid_s(tiny: Case, tiny_pipeline: Pipeline) -> None:
    golden = tiny.modules
    maps = [golden[f"tf_s{k}_tokens"] for k in range(len(PATCH_NUMS))]
    masked = np.zeros((len(maps[0]), sum(pn * pn for pn in PATCH_NUMS)), np.bool_)
    masked[:, golden["pyr_idx_to_mask"] + 1] = True
    scores = tiny_pipeline.score(maps, golden["tf_labels"].tolist(), masked)
    for head, by_scale in (("ns", scores.ns_by_scale), ("mask", scores.mask_by_scale)):
        logits = golden[f"pyr_{head}_logits"].astype(np.float64)
        norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        packed = np.concatenate(maps, axis=1)
        log_prob = np.take_along_axis(logits, packed[..., None], -1)[..., 0] - norm
        bounds = np.cumsum([pn * pn for pn in PATCH_NUMS])[:-1]
        expected = np.stack([part.sum(1) for part in np.split(log_prob, bounds, axis=1)], axis=1)
        assert by_scale is not None
        np.testing.assert_allclose(by_scale, expected, rtol=1e-5)
