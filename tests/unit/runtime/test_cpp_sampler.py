"""The C++ sampler chooses what the NumPy rule chooses, to the last bit of what decides."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from runtime import sampler
from tests.cpp_build import build_cpp

CHOICE = np.dtype([("token", np.int32), ("confidence", np.float32)])


def rows(vocab: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Logits of several kinds: wide, narrow, with many equal ones."""
    logits = rng.standard_normal((count, vocab)) * rng.choice([0.1, 1, 4, 20], (count, 1))
    logits[::5] = np.round(logits[::5])
    return logits.astype(np.float32)


@pytest.mark.parametrize(
    ("vocab", "top_k", "top_p"),
    [
        (4096, 900, 0.96),
        (4096, 0, 0.9),
        (4096, 1, 0.5),
        (1000, 999, 1.0),
        (61, 0, 0.0),
        (7, 3, 0.7),
    ],
)
def test_same_choices(vocab: int, top_k: int, top_p: float) -> None:
    program = build_cpp("cpp").folder / "choose"
    rng = np.random.default_rng(vocab + top_k)
    logits = rows(vocab, 400, rng)
    u = rng.random(len(logits))
    u[:2] = 0, 1 - 2.0**-53
    records = np.zeros(len(logits), [("logits", np.float32, vocab), ("u", np.float64)])
    records["logits"], records["u"] = logits, u
    done = subprocess.run(
        [program, str(vocab), str(top_k), str(top_p)],
        input=records.tobytes(),
        capture_output=True,
        check=True,
    )
    choices = np.frombuffer(done.stdout, CHOICE)
    p = sampler.probabilities(sampler.truncate(logits, top_k, top_p))
    tokens = sampler.draw_inverse_cdf(p[:, None], u[:, None])
    np.testing.assert_array_equal(choices["token"], tokens[:, 0])
    # float64 exponentials may differ in the last bit, and so may what is rounded from them
    np.testing.assert_allclose(
        choices["confidence"], sampler.confidence(p[:, None], tokens)[:, 0], rtol=2.0**-23
    )
