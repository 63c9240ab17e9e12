"""Settings of edits and files of given tokens: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.editing import EditConfig, given_tokens, keep_pixels, load_keep, load_tokens
from runtime.given import KeptTokens, ReplacedTokens
from tests.unit.runtime.manifests import model_spec

MODEL = model_spec()  # 1 and 2 tokens a side, 4 px
SHAPES = ((1, 1), (1, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ours"}, r"method must be one of \('known', 'published'\), got 'ours'"),
        ({"dilation_px": -1}, "dilation_px must be an integer >= 0, got -1"),
        ({"keep_scales": 1.5}, "keep_scales must be an integer"),
        ({"refine_rounds": True}, "refine_rounds must be an integer"),
        ({"keep_scales": None}, "keep_scales must be an integer"),
        ({"feather_px": -2}, "feather_px must be an integer"),
        ({"method": "published", "keep_scales": 1}, "belong to the method"),
        ({"method": "published", "refine_rounds": 1}, "belong to the method"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EditConfig(**settings)


@pytest.mark.parametrize(
    ("edit", "schedule", "message"),
    [
        (EditConfig(dilation_px=5), None, "dilation_px is 5, images have 4 px"),
        (EditConfig(feather_px=5), None, "feather_px is 5, images have 4 px"),
        (EditConfig(keep_scales=3), None, "keep_scales is 3, the model has 2 scales"),
        (EditConfig(refine_rounds=1), None, "the schedule has none"),
        (EditConfig(refine_rounds=1), ((1,), (4,)), "the schedule has none"),
        (EditConfig(refine_rounds=1, keep_scales=2), ((1,), (1, 3)), "a smaller keep_scales"),
        (EditConfig(refine_rounds=128), ((1,), (1, 2, 1)), "more than 255"),
    ],
)
def test_settings_that_do_not_fit_the_model(edit: EditConfig, schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit.check(MODEL, schedule)


def test_settings_that_fit() -> None:
    edit = EditConfig(dilation_px=4, feather_px=0, keep_scales=1, refine_rounds=255)
    edit.check(MODEL, ((1,), (1, 3)))


@pytest.mark.parametrize(
    "keep",
    [np.ones((3, 3), np.bool_), np.ones((4, 4), np.uint8), np.ones((2, 4, 4), np.bool_)],
    ids=["another size", "numbers", "another batch"],
)
def test_keep_masks_that_do_not_fit(keep: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\) pixels or \(2, 2\) tokens.*3 images.*got"):
        keep_pixels(keep, 3, MODEL)


def test_keep_masks_of_tokens_are_those_of_their_pixels() -> None:
    keep = np.array([[True, False], [False, True]])
    pixels = keep_pixels(keep, 2, MODEL)
    assert pixels.shape == (2, 4, 4)
    np.testing.assert_array_equal(pixels[1], np.kron(keep, np.ones((2, 2))).astype(bool))


def test_dilation_grows_the_region() -> None:
    tokens = [np.zeros(shape, np.int32) for shape in SHAPES]
    keep = np.ones((1, 4, 4), np.bool_)
    keep[0, 0, 0] = False
    for dilation, known in ((0, [False, True, True, True]), (2, [False] * 4)):
        made = given_tokens(tokens, keep, MODEL.patch_nums, EditConfig(dilation_px=dilation))
        assert isinstance(made, KeptTokens)
        assert made.kept[1][0].tolist() == known and not made.kept[0].any()


def test_kept_scales_are_kept_whole() -> None:
    tokens = [np.zeros(shape, np.int32) for shape in SHAPES]
    keep = np.zeros((1, 4, 4), np.bool_)
    made = given_tokens(tokens, keep, MODEL.patch_nums, EditConfig(keep_scales=1))
    assert made.kept[0].all() and not made.kept[1].any()
    made = given_tokens(tokens, keep, MODEL.patch_nums, EditConfig(method="published"))
    assert isinstance(made, ReplacedTokens)
    assert made.kept[0].all() and not made.kept[1].any()


@pytest.mark.parametrize("pattern", ["edit_s{k}_given", "s{k}", "s{k}_tokens", "vae_s{k}_tokens"])
def test_token_files(tmp_path: Path, pattern: str) -> None:
    maps = {pattern.format(k=k): np.full(shape, k) for k, shape in enumerate(SHAPES)}
    np.savez(tmp_path / "t.npz", **maps, image=np.zeros(3))
    tokens = load_tokens(tmp_path / "t.npz", MODEL.patch_nums)
    assert [t.tolist() for t in tokens] == [[[0]], [[1] * 4]]


def test_given_tokens_of_an_edit_come_before_its_own(tmp_path: Path) -> None:
    names = {"s{}_tokens": 1, "edit_s{}_given": 2}
    arrays = {n.format(k): np.full(s, v) for n, v in names.items() for k, s in enumerate(SHAPES)}
    np.savez(tmp_path / "t.npz", **arrays)
    assert load_tokens(tmp_path / "t.npz", MODEL.patch_nums)[0].item() == 2


def test_bad_token_files(tmp_path: Path) -> None:
    path, patch_nums = tmp_path / "t.npz", MODEL.patch_nums
    with pytest.raises(ValueError, match=r"t\.npz: not an \.npz file of token maps"):
        load_tokens(path, patch_nums)
    path.write_text("no tokens")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        load_tokens(path, patch_nums)
    np.savez(path, s0=np.zeros((1, 1), int))
    with pytest.raises(
        ValueError, match=r"no token maps of 2 scales; expected .*s0.*found \['s0'\]"
    ):
        load_tokens(path, patch_nums)
    np.savez(path, s0=np.zeros((1, 1), int), s1=np.zeros((1, 9), int))
    with pytest.raises(ValueError, match=r"must be integers of shapes \[\(1, 1\), \(1, 4\)\]"):
        load_tokens(path, patch_nums)
    np.savez(path, s0=np.zeros((1, 1)), s1=np.zeros((1, 4)))
    with pytest.raises(ValueError, match="float64"):
        load_tokens(path, patch_nums)
    with path.open("wb") as file:
        np.save(file, np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="holds one array"):
        load_tokens(path, patch_nums)


def test_keep_files(tmp_path: Path) -> None:
    path = tmp_path / "keep.npy"
    np.save(path, np.eye(2, dtype=np.bool_))
    np.testing.assert_array_equal(load_keep(path), np.eye(2))
    np.save(path, np.eye(2))
    with pytest.raises(ValueError, match="holds float64 numbers, wanted a boolean array"):
        load_keep(path)
    with path.open("wb") as file:
        np.savez(file, a=np.eye(2, dtype=np.bool_))
    with pytest.raises(ValueError, match="holds several arrays"):
        load_keep(path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"keep\.npy: not an \.npy file"):
        load_keep(path)
