"""Sampling settings worth comparing, most telling first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hmar.config import PATCH_NUMS_256
from hmar.training.demo import PREVIEW_MASK_SCHEDULE
from runtime.config import SamplingConfig
from runtime.schedule import Schedule

BIG_SIDE = 8  # scales of at least this patch number; the default schedule has no pass there
HALF = (0.5,)
COSINE = (0.92, 0.71, 0.38)  # cos(π/2 · 1/4), cos(π/2 · 2/4), cos(π/2 · 3/4)
# What is predicted again at the big scales: shares of the tokens, pass by pass. True = the default
# passes at the small scales, False = none.
MASKED_SHARES: dict[str, tuple[bool, tuple[float, ...]]] = {
    "big-half": (True, HALF),
    "big-cosine": (True, COSINE),
    "big-quarter": (True, (0.25,)),
    "big-halves": (True, (0.5, 0.25, 0.12)),
    "big-all": (True, (1.0, 0.5)),
    "only-big-half": (False, HALF),
    "only-big-cosine": (False, COSINE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to sample; `schedule` is a key of `SCHEDULES`."""

    cfg: float
    top_k: int
    top_p: float
    schedule: str

    @property
    def name(self) -> str:
        return f"cfg {self.cfg:g} k {self.top_k} p {self.top_p:g} {self.schedule}"

    def config(self) -> SamplingConfig:
        return SamplingConfig(
            cfg=self.cfg,
            top_k=self.top_k,
            top_p=self.top_p,
            mask_schedule=SCHEDULES[self.schedule],
        )


def masked_entry(num_tokens: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The schedule's entry whose pass j predicts `shares[j]` of a scale's tokens again."""
    counts = [num_tokens, *(round(num_tokens * share) for share in shares), 0]
    return tuple(before - after for before, after in itertools.pairwise(counts))


def by_importance(
    cfgs: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    schedules: Sequence[str],
) -> list[Setting]:
    """All combinations: the first values, then those with one other value, then with two, …"""
    options = (cfgs, top_ks, top_ps, schedules)
    places = itertools.product(*(range(len(values)) for values in options))
    ordered = sorted(places, key=lambda place: (sum(map(bool, place)), sum(place)))
    return [
        Setting(cfg=cfgs[c], top_k=top_ks[k], top_p=top_ps[p], schedule=schedules[s])
        for c, k, p, s in ordered
    ]


def _schedule(has_small_passes: bool, shares: tuple[float, ...]) -> Schedule:
    entries = []
    for pn, entry in zip(PATCH_NUMS_256, PREVIEW_MASK_SCHEDULE, strict=True):
        if pn >= BIG_SIDE:
            entries.append(masked_entry(pn * pn, shares))
        else:
            entries.append(entry if has_small_passes else (pn * pn,))
    return tuple(entries)


SCHEDULES: dict[str, Schedule | None] = {
    "default": PREVIEW_MASK_SCHEDULE,
    "none": None,
    **{name: _schedule(*shares) for name, shares in MASKED_SHARES.items()},
}
