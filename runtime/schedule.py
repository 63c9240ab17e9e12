"""Mask schedules: which tokens of a scale are predicted again, in how many passes.

A schedule has one entry per scale, `[n0, n1, ..., nm]`: pass j of m re-predicts the
`n_j + ... + n_m` least confident tokens of those that pass j - 1 re-predicted. An entry of fewer
than two numbers means no masked pass; the first scale never has one. More than pn² means all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from runtime.philox import MAX_PASSES

Schedule = tuple[tuple[int, ...], ...]

QUALITY_PASSES = 3  # per scale, of the schedule `quality`


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


def cosine_entry(num_tokens: int, passes: int) -> tuple[int, ...]:
    """An entry with at most `passes` masked passes, after the cosine of MaskGIT (arXiv:2202.04200).

    Pass j predicts `cos(pi/2 * j / (passes + 1))` of the tokens again, rounded down; passes that
    would predict none, or as many as the one before, are left out.
    """
    counts = [num_tokens]
    for j in range(1, passes + 1):
        share = math.cos(math.pi / 2 * j / (passes + 1))
        count = int(num_tokens * share + 1e-9)  # where the cosine is rational, as at pi/3
        if 0 < count < counts[-1]:
            counts.append(count)
    return tuple(before - after for before, after in itertools.pairwise([*counts, 0]))


def cosine_schedule(patch_nums: Sequence[int], passes: int, first_scale: int = 0) -> Schedule:
    """Cosine entries from one scale on, no masked passes before it."""
    return tuple(
        cosine_entry(pn * pn, passes if k >= first_scale else 0) for k, pn in enumerate(patch_nums)
    )


def parse_schedule(
    text: str, default: Schedule | None, patch_nums: Sequence[int]
) -> Sequence[Sequence[int]] | None:
    """A schedule by name, from JSON, or from a JSON file.

    Names: `default` is the bundle's; `fast` (or `none`) has no masked passes; `quality` has three
    after the cosine at each of the finer half of the scales; `cosine:N` has up to N at every scale.
    What comes from JSON is a list; `check_schedule` looks into it.

    Args:
        text: the name, JSON, or a path that ends in `.json`.
        default: the bundle's schedule.
        patch_nums: of the model.

    Raises:
        ValueError: the text is none of these.
    """
    if text == "default":
        return default
    if text in ("fast", "none"):
        return None
    if text == "quality":
        return cosine_schedule(patch_nums, QUALITY_PASSES, len(patch_nums) // 2)
    if text.startswith("cosine:"):
        count = text.removeprefix("cosine:")
        if not count.isdecimal() or not 1 <= int(count) < MAX_PASSES:
            raise ValueError(
                f"schedule {text!r}: cosine:N takes the number of masked passes per scale, "
                f"1..{MAX_PASSES - 1}, such as cosine:4"
            )
        return cosine_schedule(patch_nums, int(count))
    try:
        source = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        schedule = json.loads(source)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"schedule {text!r} is no name (default, fast, quality, cosine:N) and no JSON such as "
            f"[[1],[1,3],…] ({error})"
        ) from error
    if schedule is not None and not isinstance(schedule, list):
        raise ValueError(f"schedule must be a list with one list per scale, got {schedule!r}")
    return schedule
