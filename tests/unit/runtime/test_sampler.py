"""The NumPy rule against its PyTorch twin in the reference, on awkward inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmar import reference
from runtime import sampler

RNG = np.random.default_rng(0)


def logits(*shape: int, ties: bool = False) -> np.ndarray:
    values = RNG.standard_normal(shape).astype(np.float32) * 3
    return np.round(values) if ties else values


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 0.0), (1, 0.0), (7, 0.0), (65, 0.0), (0, 0.5), (0, 1.0), (20, 0.9), (3, 0.1)],
)
def test_truncation_is_the_reference_rule(top_k: int, top_p: float, ties: bool) -> None:
    x = logits(3, 5, 65, ties=ties)
    expected = reference.truncate(torch.from_numpy(x), top_k, top_p).numpy()
    np.testing.assert_array_equal(sampler.truncate(x, top_k, top_p), expected)


def test_truncation_leaves_its_input_alone() -> None:
    x = logits(2, 3, 9)
    before = x.copy()
    sampler.truncate(x, 2, 0.5)
    np.testing.assert_array_equal(x, before)


def test_equal_logits_survive_top_k() -> None:
    x = np.array([[[5.0, 3.0, 3.0, 3.0, 1.0]]], np.float32)
    assert np.isfinite(sampler.truncate(x, 2, 0.0)).tolist() == [[[True, True, True, True, False]]]


def test_the_largest_logit_survives_any_nucleus() -> None:
    x = np.array([[[0.0, 50.0, 0.0]]], np.float32)
    assert np.isfinite(sampler.truncate(x, 0, 1e-9)).tolist() == [[[False, True, False]]]


def test_draw_takes_the_first_token_beyond_u() -> None:
    p = np.array([[[0.25, 0.0, 0.5, 0.25]] * 5])
    u = np.array([[0.0, 0.2499, 0.25, 0.7499, 0.75]])
    assert sampler.draw_inverse_cdf(p, u).tolist() == [[0, 0, 2, 2, 3]]


def test_draw_never_takes_a_removed_token() -> None:
    x = sampler.truncate(logits(4, 50, 64), 3, 0.0)
    u = RNG.random((4, 50))
    u[0] = 0.0
    u[1] = np.nextafter(1.0, 0.0)
    tokens = sampler.draw_inverse_cdf(sampler.probabilities(x), u)
    assert np.isfinite(np.take_along_axis(x, tokens[..., None], -1)).all()


def test_draw_is_the_reference_rule() -> None:
    x = sampler.truncate(logits(3, 40, 64), 30, 0.95)
    u = RNG.random((3, 40))
    expected = reference.draw_inverse_cdf({"d": u})("d", torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(sampler.draw_inverse_cdf(sampler.probabilities(x), u), expected)


def test_guidance_grows_from_none_to_all() -> None:
    assert [sampler.guidance(1.5, k, 4) for k in range(4)] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("t", [0.0, 1.5, 1.5e-6])
def test_guide_is_the_reference_rule(t: float) -> None:
    raw = logits(6, 4, 9)
    np.testing.assert_array_equal(
        sampler.guide(raw, t), reference.guide(torch.from_numpy(raw), t).numpy()
    )


def test_equal_confidences_keep_their_order() -> None:
    conf = np.array([[1.0, 0.5, 1.0, 0.5, 1.0]], np.float32)
    candidates = np.array([[7, 3, 1, 9, 4]])
    assert sampler.least_confident(conf, candidates, 4).tolist() == [[3, 9, 7, 1]]
    assert sampler.least_confident(conf, candidates, 0).shape == (1, 0)
