"""Judges and distances on data with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmar.training.fidelity import frechet_distance, nearest_backgrounds, nearest_distances
from hmar.training.judges import ConvJudge, LinearProbe, predict


def test_frechet_distance_of_shifted_features() -> None:
    features = np.random.default_rng(0).normal(size=(500, 4))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2) == pytest.approx(16)


def test_frechet_distance_of_scaled_features() -> None:
    features = np.random.default_rng(0).normal(size=(500, 4))
    features -= features.mean(axis=0)
    # tr(A + 9 A - 2 * 3 A) = 4 tr(A)
    expected = 4 * np.trace(np.cov(features, rowvar=False))
    assert frechet_distance(features, 3 * features) == pytest.approx(expected)


def test_a_copy_has_distance_zero() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    # 0.3 of 255: float32 sums of squares cancel
    assert nearest_distances(images[:2], images) == pytest.approx([0, 0], abs=0.3)
    assert (nearest_distances(images[:2], images[2:]) > 1).all()


def test_backgrounds_are_recognised_behind_a_character_and_flipped() -> None:
    rng = np.random.default_rng(0)
    backgrounds = rng.integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    images = backgrounds[[2, 0, 3]].copy()
    images[1] = images[1, :, ::-1]
    images[:, 30:, 30:100] = 7
    assert nearest_backgrounds(images, backgrounds).tolist() == [2, 0, 3]


def test_probe_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = np.eye(3)[labels] + 0.05 * rng.normal(size=(60, 3))
    assert (LinearProbe(features, labels).predict(features) == labels).all()


def test_conv_judge_gives_one_class_per_picture() -> None:
    judge = ConvJudge(5, width=4).eval()
    assert predict(judge, torch.zeros(3, 3, 128, 128)).shape == (3,)
