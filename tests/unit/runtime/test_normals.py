"""Counter-based normal numbers and orders: their distribution, and what they may depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.himar_draws import SeededHiMARDraws
from runtime.normals import NOISE, normals, orders, second_word
from runtime.philox import philox_4x32

POSITIONS = np.array([[0, 7, 3], [9, 1, 2]])
SEED = (5 << 32) + 9


def test_numbers_follow_the_stated_rule() -> None:
    """As a program in another language would compute them, one by one."""
    numbers = normals(SEED, [4, (3 << 32) + 1], "dense", 2, 6, POSITIONS, channels=6)
    for b, image in enumerate((4, (3 << 32) + 1)):
        for n, position in enumerate(POSITIONS[b].tolist()):
            for c in range(6):
                place = position * 2 + c // 4
                counter = [place, (1 << 28) + 1024 * 2 + 6, image & 0xFFFFFFFF, image >> 32]
                x = philox_4x32(np.array(counter), (9, 5)).tolist()
                u, v = ((x[c % 4 // 2 * 2 + k] + 0.5) / 2**32 for k in (0, 1))
                turn = math.sin if c % 2 else math.cos
                expected = math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v)
                assert numbers[b, n, c] == pytest.approx(expected, rel=1e-6)


def test_numbers_are_normal() -> None:
    z = normals(1, [0], "pivot", 0, 0, np.arange(20_000)[None], channels=16).ravel()
    assert z.dtype == np.float32 and np.isfinite(z).all()
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    for limit, share in ((1, 0.8413), (2, 0.9772), (3, 0.99865)):
        assert (z < limit).mean() == pytest.approx(share, abs=2e-3)
    pairs = np.corrcoef(z.reshape(-1, 4).T)
    assert np.abs(pairs - np.eye(4)).max() < 0.02


def test_an_image_depends_on_its_own_number_alone() -> None:
    three = SeededHiMARDraws(7, [3, 5, 8])
    part, alone = three.for_images(slice(1, 2), 3), SeededHiMARDraws(7, [5])
    positions = np.arange(4)[None]
    expected = alone.noise("pivot", 1, 2, positions, 16)
    np.testing.assert_array_equal(part.noise("pivot", 1, 2, positions, 16), expected)
    tiled = three.noise("pivot", 1, 2, np.tile(positions, (3, 1)), 16)
    np.testing.assert_array_equal(tiled[1:2], expected)
    np.testing.assert_array_equal(three.orders("dense", 9)[1], alone.orders("dense", 9)[0])


def test_a_token_depends_on_its_position_alone() -> None:
    some = normals(7, [0], "dense", 0, 0, np.array([[5, 2]]), 16)
    every = normals(7, [0], "dense", 0, 0, np.arange(8)[None], 16)
    np.testing.assert_array_equal(some, every[:, [5, 2]])


def test_every_draw_has_numbers_of_its_own() -> None:
    """Over phases, steps, draws, images and seeds."""
    position = np.array([[3]])
    seen = [
        normals(seed, [image], phase, step, draw, position, 16)
        for seed in (0, 1 << 32)
        for image in (0, 1 << 32)
        for phase in NOISE
        for step, draw in ((0, 0), (0, 1), (0, 999), (1, 0))
    ]
    assert len({value.tobytes() for value in seen}) == len(seen)
    assert second_word(1, (1 << 18) - 1, 1023) < second_word(2, 0, 0)


def test_orders_are_permutations_that_differ() -> None:
    drawn = orders(3, range(50), "pivot", 16)
    np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(16), (50, 1)))
    assert len({order.tobytes() for order in drawn}) == 50
    assert not np.array_equal(drawn, orders(3, range(50), "dense", 16))
    assert (drawn[:, -1] == 0).sum() < 12, "no position comes first in most orders"


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed must be in"):
        orders(seed, [0], "pivot", 4)
