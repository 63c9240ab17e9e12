"""The counter-based generator against published vectors, and what its numbers may depend on."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.philox import philox_4x32, uniforms

# Known answers of Philox-4x32-10 (Random123's kat_vectors): counter, key, output.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter: str, key: str, output: str) -> None:
    k0, k1 = words(key)
    assert philox_4x32(np.array(words(counter)), (k0, k1)).tolist() == words(output)


def test_uniforms_are_53_bit_numbers_below_one() -> None:
    u = uniforms(7, range(50), 9, 0, 256)
    assert u.dtype == np.float64 and u.shape == (50, 256)
    assert 0 <= u.min() and u.max() < 1
    assert (u * 2.0**53 == np.floor(u * 2.0**53)).all()
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert len(np.unique(u)) == u.size


def test_an_image_has_its_numbers_whatever_the_batch() -> None:
    alone = uniforms(3, [5], 2, 1, 9)
    together = uniforms(3, [9, 5, 0, 2**40 + 5], 2, 1, 9)
    np.testing.assert_array_equal(together[1], alone[0])
    assert not np.array_equal(together[3], alone[0])


@pytest.mark.parametrize(
    "other", [(4, 5, 2, 1), (3, 6, 2, 1), (3, 5, 3, 1), (3, 5, 2, 2), (3 + 2**32, 5, 2, 1)]
)
def test_every_part_of_the_key_counts(other: tuple[int, int, int, int]) -> None:
    seed, image, scale, pass_idx = other
    assert not np.array_equal(
        uniforms(seed, [image], scale, pass_idx, 16), uniforms(3, [5], 2, 1, 16)
    )


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be in"):
        uniforms(seed, [0], 0, 0, 1)
