"""Settings of the sweep: their order and their schedules."""

from __future__ import annotations

import pytest

from hmar.config import PATCH_NUMS_256
from runtime.schedule import check_schedule, masked_counts
from scripts.sweeping import SCHEDULES, by_importance, masked_entry


@pytest.mark.parametrize("shares", [(0.5,), (0.92, 0.71, 0.38), (1.0, 0.5)], ids=str)
@pytest.mark.parametrize("num_tokens", [64, 169])
def test_every_pass_predicts_its_share_again(num_tokens: int, shares: tuple[float, ...]) -> None:
    counts = masked_counts(masked_entry(num_tokens, shares), num_tokens)
    assert counts == [round(num_tokens * share) for share in shares]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fit_the_demo_checkpoint(name: str) -> None:
    schedule = SCHEDULES[name]
    if schedule is not None:
        check_schedule(schedule, PATCH_NUMS_256)
        for pn, entry in zip(PATCH_NUMS_256, schedule, strict=True):
            assert all(0 < n <= pn * pn for n in masked_counts(entry, pn * pn))


def test_settings_near_the_first_one_come_first() -> None:
    settings = by_importance([1.5, 0.0], [600], [0.95, 0.9], ["none", "default"])
    changes = [(s.cfg != 1.5) + (s.top_p != 0.95) + (s.schedule != "none") for s in settings]
    assert changes == [0, 1, 1, 1, 2, 2, 2, 3]
    assert settings[0].name == "cfg 1.5 k 600 p 0.95 none"
