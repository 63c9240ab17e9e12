"""Mask schedules: counts per pass, and messages for what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512, default_schedule
from runtime.schedule import check_schedule, cosine_entry, masked_counts, parse_schedule


@pytest.mark.parametrize(
    ("entry", "tokens", "counts"),
    [
        ((1, 1, 2, 5), 9, [8, 7, 5]),
        ((1, 3), 4, [3]),
        ((16,), 16, []),
        ((), 16, []),
        ((0, 4), 4, [4]),
        ((0, 9, 7), 16, [16, 7]),
        ((2, 30, 30), 16, [16, 16]),
        ((1, 0), 4, [0]),
        ((1, 3), 1, []),
    ],
)
def test_masked_counts(entry: tuple[int, ...], tokens: int, counts: list[int]) -> None:
    assert masked_counts(entry, tokens) == counts


@pytest.mark.parametrize("patch_nums", [PATCH_NUMS_256, PATCH_NUMS_512])
def test_default_schedule_covers_every_scale(patch_nums: tuple[int, ...]) -> None:
    schedule = default_schedule(patch_nums)
    assert [sum(entry) for entry in schedule] == [pn * pn for pn in patch_nums]
    assert check_schedule(schedule, patch_nums) == schedule


def test_published_schedule_at_256_px() -> None:
    expected = [[1], [1, 3], [1, 1, 2, 5], [16], [25], [36], [64], [100], [169], [256]]
    assert [list(entry) for entry in default_schedule(PATCH_NUMS_256)] == expected


def test_extra_entries_are_ignored() -> None:
    assert check_schedule([[1], [4], ["anything"]], (1, 2)) == ((1,), (4,))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([[1]], "has 1 entries, the model has 2 scales"),
        ([[1], [1, -3]], r"mask_schedule\[1\]"),
        ([[1], [1.5]], r"mask_schedule\[1\]"),
        ([[1], [True]], r"mask_schedule\[1\]"),
        ([[1], 4], r"mask_schedule\[1\]"),
        ("default", "list of lists"),
        ([[1], [0] * 300], "at most 255"),
    ],
)
def test_bad_schedules(schedule: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schedule(schedule, (1, 2))  # type: ignore[arg-type]


def test_parse(tmp_path: Path) -> None:
    default, patch_nums = ((1,), (4,)), (1, 2)
    assert parse_schedule("default", default, patch_nums) == default
    assert parse_schedule("none", default, patch_nums) is None
    assert parse_schedule("fast", default, patch_nums) is None
    assert parse_schedule("[[1],[1,3]]", default, patch_nums) == [[1], [1, 3]]
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps([[1], [2, 2]]))
    assert parse_schedule(str(file), default, patch_nums) == [[1], [2, 2]]


@pytest.mark.parametrize("text", ["fast?", "[[1],", "{}", "missing.json", "3"])
def test_unreadable_schedules(text: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        parse_schedule(text, None, (1, 2))


@pytest.mark.parametrize("text", ["cosine:", "cosine:0", "cosine:-1", "cosine:two", "cosine:256"])
def test_cosine_schedules_take_a_number_of_passes(text: str) -> None:
    with pytest.raises(ValueError, match=r"1\.\.255, such as cosine:4"):
        parse_schedule(text, None, (1, 2))


@pytest.mark.parametrize("patch_nums", [PATCH_NUMS_256, PATCH_NUMS_512, (1, 2, 3, 4)])
@pytest.mark.parametrize("text", ["quality", "cosine:1", "cosine:5", "cosine:255"])
def test_named_schedules_cover_every_scale(text: str, patch_nums: tuple[int, ...]) -> None:
    schedule = parse_schedule(text, None, patch_nums)
    assert schedule is not None and check_schedule(schedule, patch_nums) == schedule
    assert [sum(entry) for entry in schedule] == [pn * pn for pn in patch_nums]
    for entry, pn in zip(schedule, patch_nums, strict=True):
        counts = masked_counts(entry, pn * pn)
        assert counts == sorted(set(counts), reverse=True), "each pass predicts fewer"
        assert all(0 < count < pn * pn for count in counts)


def test_quality_has_masked_passes_at_the_finer_half_of_the_scales() -> None:
    schedule = parse_schedule("quality", None, PATCH_NUMS_256)
    assert schedule is not None
    passes = [len(masked_counts(e, p * p)) for e, p in zip(schedule, PATCH_NUMS_256, strict=True)]
    assert passes == [0] * 5 + [3] * 5


@pytest.mark.parametrize(
    ("tokens", "passes", "entry"),
    [
        (100, 1, (30, 70)),  # cos(pi/4) = 0.707
        (100, 2, (14, 36, 50)),  # cos(pi/6) = 0.866, cos(pi/3) = 1/2
        (4, 2, (1, 1, 2)),
        (4, 8, (1, 1, 1, 1)),
        (1, 3, (1,)),
        (9, 0, (9,)),
    ],
)
def test_cosine_entries(tokens: int, passes: int, entry: tuple[int, ...]) -> None:
    assert cosine_entry(tokens, passes) == entry
