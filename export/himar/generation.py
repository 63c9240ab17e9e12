"""Hi-MAR generations whose passes and denoisers are the exported graphs.

The order of operations is that of `hmar.himar_reference`; only what the graphs compute is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from export.himar.feeds import Tensors, dense_feeds, pivot_feeds, predicted
from hmar.config import HiMARConfig
from hmar.diffusion import Record, diffusion_schedule, sample_tokens
from hmar.diffusion_head import Denoiser
from hmar.himar import Phase, put
from hmar.himar_reference import Noise
from hmar.himar_schedule import HiMARSampling, plan
from runtime.bundle import Kind

Run = Callable[[Kind, int | None, Tensors], Tensors]
"""(kind, step_idx, inputs) of a graph -> its outputs in order, float32."""


class GraphDenoiser:
    """The graph of a denoiser in the place of its module; guidance is the graph's own."""

    def __init__(self, run: Run, phase: Phase, head_cond: Tensor, weight: float | None) -> None:
        """Names the graph.

        Args:
            weight: guidance strength, for conditions of 2B rows; None for B rows.
        """
        self.run, self.feeds = run, {"head_cond": head_cond}
        guided: Kind = "denoise_pivot" if phase == "pivot" else "denoise_dense"
        unguided = f"{guided}_unguided"
        self.kind = guided if weight is not None else cast(Kind, unguided)
        if weight is not None:
            self.feeds["scale"] = torch.tensor([weight])

    def cond(self, z: Tensor) -> Tensor:
        """Nothing to do: the step's graph has embedded the condition."""
        return z

    def time(self, timestep: Tensor) -> Tensor:
        """Nothing to do: the graph holds the embeddings."""
        return timestep

    def __call__(self, x_BnC: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        """Guided noise, and variance values if there are some, (B, n, C or 2C)."""
        out = self.run(self.kind, None, {"x": x_BnC, "timestep": timestep, **self.feeds})
        return torch.cat(list(out.values()), dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotState:
    """Where the pivot phase stands before a step: tokens (B, P, C), and of each its z (B, P, D)."""

    step_idx: int
    pivots: Tensor
    small_z: Tensor


class GraphGeneration:
    """One generation with a bundle's graphs."""

    def __init__(
        self,
        run: Run,
        config: HiMARConfig,
        cond_BD: Tensor,
        no_cond_1D: Tensor,
        orders_BS: Tensor,
        sampling: HiMARSampling,
        noise: Noise,
        record: Record = lambda name, value: None,
    ) -> None:
        """Takes what `hmar.himar_reference.generate_tokens` does.

        Args:
            cond_BD, no_cond_1D: rows of the graph `cond`, or condition vectors and its one row.
            sampling: with the bundle's own `num_iter`.
            record: receives tokens after every step, and `small_z`.
        """
        self.run, self.config, self.sampling = run, config, sampling
        self.cond_BD, self.no_cond_1D = cond_BD, no_cond_1D
        P = config.num_pivots
        self.order_BP, self.order_BN = orders_BS[:, :P], orders_BS[:, P:] - P
        self.noise, self.record = noise, record

    def start(self) -> PivotState:
        """Nothing is known."""
        B, config = len(self.cond_BD), self.config
        return PivotState(
            step_idx=0,
            pivots=torch.zeros(B, config.num_pivots, config.token_channels),
            small_z=torch.zeros(B, config.num_pivots, config.embed_dim),
        )

    @torch.inference_mode()
    def tokens(self, state: PivotState) -> tuple[Tensor, Tensor]:
        """Pivots (B, P, C) and dense tokens (B, N, C), from a state of the pivot phase on."""
        pivots, small_z = self._sample_pivots(state)
        return pivots, self._sample_dense(small_z)

    def _rows(self, cfg: float) -> Tensor:
        rows = (
            (self.cond_BD,) if cfg == 1 else (self.cond_BD, self.no_cond_1D.expand_as(self.cond_BD))
        )
        return torch.cat(rows)

    def _sample_pivots(self, state: PivotState) -> tuple[Tensor, Tensor]:
        config, sampling, B = self.config, self.sampling, len(self.cond_BD)
        schedule = diffusion_schedule(sampling.pivot_respacing)
        cond_ND, pivots, small_z = self._rows(sampling.re_cfg), state.pivots, state.small_z
        steps = plan(config.num_pivots, config.pivot_steps, sampling.re_cfg, sampling.cfg_schedule)
        for s, step in list(enumerate(steps))[state.step_idx :]:
            feeds = pivot_feeds(cond_ND, pivots, self.order_BP, step, config.num_tokens)
            out = self.run("pivot", s, feeds)
            positions_Bn = predicted(self.order_BP, step)
            weight = step.weight if len(cond_ND) == 2 * B else None
            tokens = sample_tokens(
                cast(Denoiser, GraphDenoiser(self.run, "pivot", out["head_cond"], weight)),
                schedule,
                out["z"][:B],
                partial(self.noise, "pivot", s, positions_Bn),
                temperature=sampling.temperature,
            )
            pivots = put(pivots, positions_Bn, tokens)
            small_z = put(small_z, positions_Bn, out["z"][:B])
            self.record("p1.tokens", pivots)
        self.record("small_z", small_z)
        return pivots, small_z

    def _sample_dense(self, small_z_BPD: Tensor) -> Tensor:
        config, sampling, B = self.config, self.sampling, len(self.cond_BD)
        N = config.num_dense
        schedule = diffusion_schedule(sampling.dense_respacing)
        cond_ND = self._rows(sampling.cfg)
        dense = small_z_BPD.new_zeros(B, N, config.token_channels)
        positions_BN = torch.arange(N).expand(B, -1)
        steps = plan(N, sampling.num_iter, sampling.cfg, sampling.cfg_schedule)
        for k, step in enumerate(steps):
            known_BK = self.order_BN[:, step.unknown :].sort(dim=1).values
            out = self.run("dense", k, dense_feeds(cond_ND, small_z_BPD, dense, known_BK))
            is_known = torch.zeros(B, N, dtype=torch.bool).scatter(1, known_BK, True)
            weight = step.weight if len(cond_ND) == 2 * B else None
            sampled = sample_tokens(
                cast(Denoiser, GraphDenoiser(self.run, "dense", out["head_cond"], weight)),
                schedule,
                out["head_cond"][:B],
                partial(self.noise, "dense", k, positions_BN),
                temperature=sampling.temperature,
                held=(is_known, dense),
            )
            dense = torch.where(is_known[..., None], dense, sampled)
            self.record("p2.tokens", dense)
        return dense
