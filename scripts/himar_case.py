"""The case file of a golden Hi-MAR trace: its sampler settings, and its orders and noise."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import HiMARModelSpec
from runtime.diffusion import respaced_timesteps
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_schedule import Phase


def read_case(path: Path) -> dict[str, Any]:
    """A case file.

    Raises:
        ValueError: the file is not one of a Hi-MAR trace.
    """
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a case file ({error})") from error
    if not isinstance(case, dict) or not {"sampler", "config", "noise_seed"} <= set(case):
        raise ValueError(
            f"{path}: not the case file of a Hi-MAR trace; expected an object with sampler, config "
            "and noise_seed"
        )
    return case


def case_sampling(case: dict[str, Any]) -> HiMARSamplingConfig:
    """The settings that a case was generated with.

    Raises:
        ValueError: one of them is missing or out of range.
    """
    call, config = case["sampler"], case["config"]
    try:
        return HiMARSamplingConfig(
            num_iter=call["num_iter"],
            cfg=call["cfg"],
            re_cfg=call["re_cfg"],
            cfg_schedule=call["cfg_schedule"],
            temperature=call["temperature"],
            pivot_diffusion_steps=config["num_sampling_steps"],
            dense_diffusion_steps=config["dit_steps"],
        )
    except KeyError as error:
        raise ValueError(f"the case has no {error}, which a trace's settings need") from error


@dataclass(frozen=True, slots=True)
class CaseDraws:
    """Orders and noise as the golden traces draw them, from one counter for the whole run.

    The counter also goes over numbers that the reference draws without use. See
    `tests/golden/himar/README.md`, sections 2 and 5.

    Args:
        seed: the case's `noise_seed`.
        total: images of the run.
        images: of these, the ones to draw for.
    """

    seed: int
    sampling: HiMARSamplingConfig
    model: HiMARModelSpec
    total: int
    images: slice

    def orders(self, phase: Phase, length: int) -> np.ndarray:
        first = 0 if phase == "pivot" else 1
        drawn = [_unit(self.seed, f"order/{2 * b + first}", length) for b in range(self.total)]
        return np.argsort(drawn, axis=1, kind="stable")[self.images]

    def noise(
        self, phase: Phase, step: int, draw: int, positions_Bn: np.ndarray, channels: int
    ) -> np.ndarray:
        n = positions_Bn.shape[1]
        pivot_calls = 1 + len(respaced_timesteps(self.sampling.pivot_diffusion_steps))
        if phase == "pivot":
            shape = (self.total, n, channels)
            return _noise(self.seed, step * pivot_calls + draw, shape)[self.images]
        dense_calls = 1 + 2 * len(respaced_timesteps(self.sampling.dense_diffusion_steps))
        # of two calls per reverse step, the first is not used
        call = self.model.pivot_steps * pivot_calls + step * dense_calls + 2 * draw
        maps_BCn = _noise(self.seed, call, (self.total, channels, n))[self.images]
        return np.ascontiguousarray(maps_BCn.transpose(0, 2, 1))

    def for_images(self, images: slice, total: int) -> CaseDraws:
        return CaseDraws(self.seed, self.sampling, self.model, total, images)


def _unit(seed: int, name: str, length: int) -> np.ndarray:
    """`unit` of the golden recipe, float64 (length,): sums of four 16-bit numbers, scaled."""
    key = np.array([seed, zlib.crc32(name.encode("ascii"))], np.uint64)
    raw = np.random.Philox(key=key).random_raw(length)
    pieces = raw[:, None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)
    return (pieces.sum(axis=1).astype(np.float64) - 131070) / np.sqrt((2.0**32 - 1) / 3)


def _noise(seed: int, call: int, shape: tuple[int, ...]) -> np.ndarray:
    """`noise` of the golden recipe, float32."""
    source = np.random.Philox(key=seed, counter=call << 192)
    return np.random.Generator(source).standard_normal(shape).astype(np.float32)
