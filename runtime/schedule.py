"""Mask schedules: which tokens of a scale are predicted again, in how many passes.

A schedule has one entry per scale, `[n0, n1, ..., nm]`: pass j of m re-predicts the
`n_j + ... + n_m` least confident tokens of those that pass j - 1 re-predicted. An entry of fewer
than two numbers means no masked pass; the first scale never has one. More than pn² means all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from runtime.philox import MAX_PASSES

Schedule = tuple[tuple[int, ...], ...]


def masked_counts(entry: Sequence[int], num_tokens: int) -> list[int]:
    """How many tokens each masked pass of one scale re-predicts."""
    if num_tokens == 1:
        return []
    counts, limit = [], num_tokens
    for j in range(1, len(entry)):
        limit = min(limit, sum(entry[j:]))
        counts.append(limit)
    return counts


def check_schedule(schedule: Sequence[Sequence[int]], patch_nums: Sequence[int]) -> Schedule:
    """The schedule as tuples.

    Raises:
        ValueError: it is shorter than the number of scales or holds anything but counts. Entries
            after the last scale are ignored.
    """
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise ValueError(f"mask_schedule must be a list of lists of token counts, got {schedule!r}")
    if len(schedule) < len(patch_nums):
        raise ValueError(
            f"mask_schedule has {len(schedule)} entries, the model has {len(patch_nums)} scales; "
            "give one list per scale, e.g. [[1],[1,3],[1,1,2,5],[16], …]"
        )
    checked = []
    for k, entry in enumerate(schedule[: len(patch_nums)]):
        is_list = isinstance(entry, Sequence) and not isinstance(entry, str)
        if not is_list or any(
            isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in entry
        ):
            raise ValueError(
                f"mask_schedule[{k}] must be a list of token counts >= 0, got {entry!r}"
            )
        if len(entry) > MAX_PASSES:
            raise ValueError(
                f"mask_schedule[{k}] has {len(entry) - 1} masked passes, "
                f"at most {MAX_PASSES - 1} are allowed"
            )
        checked.append(tuple(entry))
    return tuple(checked)


def parse_schedule(text: str, default: Schedule | None) -> Sequence[Sequence[int]] | None:
    """A schedule from the command line: `default`, `none`, JSON, or the path of a JSON file.

    What comes from JSON is a list; `check_schedule` looks into it.

    Raises:
        ValueError: the text is none of these.
    """
    if text == "default":
        return default
    if text == "none":
        return None
    try:
        source = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        schedule = json.loads(source)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"schedule {text!r} is neither 'default', 'none' nor JSON such as [[1],[1,3],…] "
            f"({error})"
        ) from error
    if schedule is not None and not isinstance(schedule, list):
        raise ValueError(f"schedule must be a list with one list per scale, got {schedule!r}")
    return schedule
