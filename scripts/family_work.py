"""Counted work of a generation of either model family."""

from __future__ import annotations

from runtime.bundle import Manifest
from runtime.config import SamplingConfig
from runtime.himar_config import HiMARSamplingConfig
from scripts import generation_work, himar_work
from scripts.generation_work import Step, Work


def planned_steps(manifest: Manifest, sampling: SamplingConfig | HiMARSamplingConfig) -> list[Step]:
    """The steps of one generation, in order."""
    if isinstance(sampling, HiMARSamplingConfig):
        return himar_work.planned_steps(manifest, sampling)
    return generation_work.planned_steps(manifest, sampling)


def step_work(manifest: Manifest, step: Step, batch: int) -> dict[str, Work]:
    """Work of one step for so many images, by part of the model."""
    family = himar_work if manifest.family == "himar" else generation_work
    return family.step_work(manifest, step, batch)
