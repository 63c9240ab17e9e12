"""From kept pixels to kept tokens, against loops over cells and against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512
from runtime.regions import blend, kept_in_cells, known_tokens, published_tokens, spread


def random_mask(seed: int, batch: int, side: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, side, side)) < share


@given(
    side=st.integers(1, 40), pn=st.integers(1, 12), seed=st.integers(0, 99), holes=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_a_token_is_known_where_all_that_its_cell_touches_is_kept(
    side: int, pn: int, seed: int, holes: int
) -> None:
    keep = np.ones((2, side, side), np.bool_)
    keep.reshape(-1)[np.random.default_rng(seed).integers(0, keep.size, holes)] = False
    known = known_tokens(keep, pn).reshape(2, pn, pn)
    for y in range(pn):
        for x in range(pn):
            (top, bottom), (left, right) = (
                (i * side // pn, -(-(i + 1) * side // pn)) for i in (y, x)
            )
            expected = keep[:, top:bottom, left:right].all(axis=(1, 2))
            assert known[:, y, x].tolist() == expected.tolist()


def test_cells_of_a_rectangle() -> None:
    keep = np.array([[True, True, False, True, True, True]])
    assert kept_in_cells(keep, 2, 1).tolist() == [[False, True]]
    assert kept_in_cells(keep, 4, 1).tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("patch_nums", [PATCH_NUMS_256, PATCH_NUMS_512, (1, 2, 3, 5, 6)])
def test_the_published_mask_is_the_one_that_pytorch_resizes(patch_nums: tuple[int, ...]) -> None:
    P = patch_nums[-1]
    halves = np.zeros((4, P, P), np.bool_)  # edges through the middle are ties on paper
    halves[0, : P // 2] = halves[1, P // 2 :] = halves[2, :, : P // 2] = halves[3, :, P // 2 :] = 1
    for keep in (halves, *(random_mask(i, 4, P, share) for i, share in enumerate((0.3, 0.5, 0.9)))):
        for pn in patch_nums[1:]:
            resized = F.interpolate(
                torch.from_numpy(keep)[:, None].float(), size=(pn, pn), mode="bilinear"
            )
            expected = (resized > 0.5).flatten(1).numpy()
            np.testing.assert_array_equal(published_tokens(keep, pn), expected, str(pn))


def test_the_published_procedure_keeps_tiny_scales_entirely() -> None:
    nothing = np.zeros((2, 8, 8), np.bool_)
    assert published_tokens(nothing, 1).all() and not published_tokens(nothing, 2).any()


def test_the_finest_published_mask_is_the_given_one() -> None:
    keep = random_mask(0, 2, 16, 0.5)
    np.testing.assert_array_equal(published_tokens(keep, 16), keep.reshape(2, -1))


def test_spreading_goes_as_far_in_all_directions() -> None:
    mask = np.zeros((1, 7, 9), np.bool_)
    mask[0, 3, 1] = True
    expected = np.zeros_like(mask)
    expected[0, 1:6, 0:4] = True
    np.testing.assert_array_equal(spread(mask, 2), expected)
    np.testing.assert_array_equal(spread(mask, 0), mask)


def test_a_blend_has_the_original_where_it_is_kept_and_a_seam_inside_the_region() -> None:
    original, edited = np.full((1, 1, 8, 3), 200, np.uint8), np.zeros((1, 1, 8, 3), np.uint8)
    keep = np.arange(8)[None, None] < 3
    row = blend(edited, original, keep, 3)[0, 0, :, 0]
    assert row.tolist() == [200, 200, 200, 150, 100, 50, 0, 0]
    hard = blend(edited, original, keep, 0)[0, 0, :, 0]
    assert hard.tolist() == [200, 200, 200, 0, 0, 0, 0, 0]


@given(seed=st.integers(0, 99), feather=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_kept_pixels_survive_every_blend(seed: int, feather: int) -> None:
    rng = np.random.default_rng(seed)
    original, edited = rng.integers(0, 256, (2, 2, 12, 12, 3), np.uint8)
    keep = random_mask(seed, 2, 12, 0.6)
    assert (blend(edited, original, keep, feather) == original)[keep].all()
