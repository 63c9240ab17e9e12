"""Rankings: totals, posterior and order, from likelihoods by scale."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.pipeline import Pipeline, Scores
from runtime.scoring import Ranking, rank


def test_a_ranking_adds_up_the_scales() -> None:
    by_scale = np.log([[[0.5, 0.2], [0.1, 0.1], [0.5, 0.8]]])
    ranking = Ranking(labels=("a", "b", "c"), log_likelihood=by_scale)
    np.testing.assert_allclose(np.exp(ranking.totals), [[0.1, 0.01, 0.4]])
    np.testing.assert_allclose(ranking.posterior, [[10 / 51, 1 / 51, 40 / 51]])
    assert ranking.order.tolist() == [[2, 0, 1]]


def test_very_unlikely_images_have_a_posterior_too() -> None:
    by_scale = np.array([[[-9000.0], [-9001.0]]])
    posterior = Ranking(labels=(0, 1), log_likelihood=by_scale).posterior
    np.testing.assert_allclose(posterior, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]])


def test_scores_are_summed_by_scale() -> None:
    values = np.arange(10, dtype=np.float32)[None]
    scores = Scores(patch_nums=(1, 3), ns_log_prob=values, mask_log_prob=None)
    assert scores.ns_by_scale.tolist() == [[0.0, 45.0]] and scores.mask_by_scale is None


def test_every_image_is_scored_under_every_label(tiny_pipeline: Pipeline) -> None:
    side = tiny_pipeline.manifest.hmar.image_side_px
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    done: list[int] = []
    ranking = rank(tiny_pipeline, images, [3, -1, 5], on_image=done.append)
    assert ranking.log_likelihood.shape == (2, 3, 4) and done == [1, 2]
    alone = tiny_pipeline.score(images[1:], [5]).ns_by_scale
    np.testing.assert_allclose(ranking.log_likelihood[1, 2], alone[0], rtol=1e-6)
    with pytest.raises(ValueError, match="label 10 is out of range"):
        rank(tiny_pipeline, images, [10])
