"""Which of Hi-MAR's graphs engines are built of, and for how many tokens: pure functions."""

from __future__ import annotations

from runtime.bundle import GraphSpec, HiMARModelSpec, HiMARSamplingDefaults, Kind
from runtime.diffusion import respaced_timesteps
from runtime.himar_schedule import plan

STEPPED: tuple[Kind, ...] = ("pivot", "dense")
"""Kinds of graph of the steps: one for each, and one for any but the first."""


def step_lengths(
    spec: GraphSpec, model: HiMARModelSpec, sampling: HiMARSamplingDefaults, per_step: bool
) -> list[dict[str, int]]:
    """Known and predicted tokens of the steps that a graph's engine runs; [] = there is no engine.

    Args:
        sampling: the modulations of pivots are for its diffusion steps.
        per_step: build one engine for each step, rather than one for the first and one, whose
            weights are in memory once, for all others.
    """
    pivots = plan(model.num_pivots, model.pivot_steps, 1.0, "constant")
    if spec.kind.startswith("denoise_pivot"):
        return [{"n": n} for n in sorted({step.predicted for step in pivots})]
    if spec.kind == "modulate_pivot":
        T = len(respaced_timesteps(sampling.pivot_diffusion_steps))
        return [{"T": T, "n": n} for n in sorted({step.predicted for step in pivots})]
    if spec.kind not in STEPPED:
        return [{}]
    if spec.step_idx is not None:
        return [{}] if per_step or spec.step_idx == 0 else []
    if per_step:
        return []
    if spec.kind == "pivot":
        return [
            {"known": model.num_pivots - step.unknown, "n": step.predicted} for step in pivots[1:]
        ]
    dense = plan(model.num_dense, model.num_iter, 1.0, "constant")
    return [{"known": model.num_dense - step.unknown} for step in dense[1:]]
