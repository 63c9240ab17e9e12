"""The plan of the two phases against the oracle's, which is checked against golden schedules."""

from __future__ import annotations

from dataclasses import asdict

import pytest

import hmar.himar_schedule
from runtime.himar_schedule import CfgSchedule, plan


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize(
    ("num_tokens", "num_steps"),
    [(16, 16), (64, 32), (64, 1), (64, 100), (256, 1), (256, 4), (256, 12), (256, 64)],
)
def test_plan_is_the_oracles(num_tokens: int, num_steps: int, schedule: CfgSchedule) -> None:
    expected = hmar.himar_schedule.plan(num_tokens, num_steps, 2.7, schedule)
    ours = plan(num_tokens, num_steps, 2.7, schedule)
    assert [asdict(step) for step in ours] == [asdict(step) for step in expected]
    assert sum(step.predicted for step in ours) == num_tokens
