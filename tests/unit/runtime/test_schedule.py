"""Mask schedules: counts per pass, and messages for what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512, default_schedule
from runtime.schedule import check_schedule, masked_counts, parse_schedule


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
    default = ((1,), (4,))
    assert parse_schedule("default", default) == default
    assert parse_schedule("none", default) is None
    assert parse_schedule("[[1],[1,3]]", default) == [[1], [1, 3]]
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps([[1], [2, 2]]))
    assert parse_schedule(str(file), default) == [[1], [2, 2]]


@pytest.mark.parametrize("text", ["fast?", "[[1],", "{}", "missing.json", "3"])
def test_unreadable_schedules(text: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        parse_schedule(text, None)
