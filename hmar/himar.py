"""The Hi-MAR transformer: one masked encoder and decoder for both phases, and a denoiser each.

Hi-MAR (arXiv:2505.20288). The pivot phase predicts the tokens of a low-resolution grid; the dense
phase predicts the full grid, conditioned on the pivots' hidden states. A pass turns what is known
into a vector z for every position, from which a denoiser samples tokens. Parameter names are those
of the published checkpoints.

Shapes: R rows (images, or the guided batch with the conditional half first), P pivots, N dense
tokens, S = P + N positions (pivots first), K known positions, L = buffer + S, D width, C token
channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hmar.config import HiMARConfig
from hmar.diffusion_head import DiTDenoiser, MLPDenoiser
from hmar.himar_layers import ScaleAwareBlock

Phase = Literal["pivot", "dense"]
PHASES: tuple[Phase, ...] = ("pivot", "dense")


def take(x_RSD: Tensor, positions_RK: Tensor) -> Tensor:
    """Rows of x at the given positions, (R, K, D)."""
    return x_RSD.gather(1, positions_RK[..., None].expand(-1, -1, x_RSD.shape[-1]))


def put(x_RSD: Tensor, positions_RK: Tensor, rows_RKD: Tensor) -> Tensor:
    """x with rows replaced at the given positions, in its own dtype."""
    index_RKD = positions_RK[..., None].expand(rows_RKD.shape)
    return x_RSD.scatter(1, index_RKD, rows_RKD.to(x_RSD.dtype))


class HiMAR(nn.Module):
    """Masked prediction of pivot and dense tokens."""

    def __init__(self, config: HiMARConfig) -> None:
        super().__init__()
        self.config = config
        D, C, S = config.embed_dim, config.token_channels, config.num_tokens
        L = config.buffer_size + S
        self.fake_latent = nn.Parameter(torch.zeros(1, D))  # in place of a condition
        if config.num_classes:
            self.class_emb = nn.Embedding(config.num_classes, D)
        # the tables that depend on the phase hold the pivot phase, then the dense phase
        self.mask_token = nn.Parameter(torch.zeros(1, 2 * S, D))
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 2 * L, D))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 2 * L, D))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, S, D))
        self.cond_proj = nn.Linear(C, D)  # pivots of the pivot phase
        self.cond_z_proj = nn.Linear(D, D)  # pivots of the dense phase, as hidden states
        self.z_proj = nn.Linear(C, D)  # dense tokens
        self.z_proj_ln = nn.LayerNorm(D, eps=config.norm_eps)
        self.encoder_task_emb = nn.Embedding(2, D)
        self.encoder_blocks_ada = nn.Sequential(nn.SiLU(), nn.Linear(D, 4 * D))
        self.encoder_blocks = self._blocks(config.encoder_depth, config.encoder_heads)
        self.encoder_norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(D, D)
        self.decoder_task_emb = nn.Embedding(2, D)
        self.decoder_blocks_ada = nn.Sequential(nn.SiLU(), nn.Linear(D, 4 * D))
        self.decoder_blocks = self._blocks(config.decoder_depth, config.decoder_heads)
        self.decoder_norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.diffloss = nn.ModuleDict({"net": MLPDenoiser(config)})
        self.cond_diffloss = nn.ModuleDict({"net": DiTDenoiser(config)})

    def _blocks(self, depth: int, num_heads: int) -> nn.ModuleList:
        D, ratio, eps = self.config.embed_dim, self.config.mlp_ratio, self.config.norm_eps
        return nn.ModuleList(ScaleAwareBlock(D, num_heads, ratio, eps) for _ in range(depth))

    @property
    def pivot_denoiser(self) -> MLPDenoiser:
        return self.diffloss["net"]

    @property
    def dense_denoiser(self) -> DiTDenoiser:
        return self.cond_diffloss["net"]

    def cond(self, labels: Sequence[int]) -> Tensor:
        """Class embeddings, (R, D); -1 = no class.

        Raises:
            ValueError: a label is out of range, or the model is conditioned by vectors.
        """
        if wrong := [y for y in labels if not -1 <= y < self.config.num_classes]:
            raise ValueError(
                f"labels {wrong} are not in -1..{self.config.num_classes - 1}"
                + ("" if self.config.num_classes else "; this model takes condition vectors")
            )
        rows = [self.fake_latent[0] if y == -1 else self.class_emb.weight[y] for y in labels]
        return torch.stack(rows)

    def encoder_ada(self, phase: Phase) -> Tensor:
        """Modulation vector that the encoder blocks share, (1, 1, 4D)."""
        return self.encoder_blocks_ada(self.encoder_task_emb.weight[PHASES.index(phase)])[
            None, None
        ]

    def decoder_ada(self, phase: Phase) -> Tensor:
        """Modulation vector that the decoder blocks share, (1, 1, 4D)."""
        return self.decoder_blocks_ada(self.decoder_task_emb.weight[PHASES.index(phase)])[
            None, None
        ]

    def encoder_input(
        self,
        phase: Phase,
        cond_RD: Tensor,
        pivots: Tensor,
        dense_RNC: Tensor,
        known_RK: Tensor,
    ) -> Tensor:
        """Input of the encoder blocks: the buffer, then the known positions; see `forward`."""
        project = self.cond_proj if phase == "pivot" else self.cond_z_proj
        buffer = cond_RD[:, None].expand(-1, self.config.buffer_size, -1)
        x_RLD = torch.cat((buffer, project(pivots), self.z_proj(dense_RNC)), dim=1)
        positions = self._of_phase(self.encoder_pos_embed_learned, phase)
        x_RLD = self.z_proj_ln(x_RLD + positions)
        buffer, x_RSD = x_RLD.split((self.config.buffer_size, self.config.num_tokens), dim=1)
        return torch.cat((buffer, take(x_RSD, known_RK)), dim=1)

    def encode(self, phase: Phase, x_RlD: Tensor) -> Tensor:
        """Encoder output of its input."""
        x_RlD = self._run(self.encoder_blocks, self.encoder_ada(phase), phase, x_RlD)
        return self.encoder_norm(x_RlD)

    def decoder_input(self, phase: Phase, x_RlD: Tensor, known_RK: Tensor) -> Tensor:
        """Input of the decoder blocks, (R, L, D): mask tokens where nothing is known.

        Args:
            x_RlD: encoder output: the buffer, then the known positions.
        """
        buffer, rows_RKD = self.decoder_embed(x_RlD).tensor_split((self.config.buffer_size,), dim=1)
        mask_1SD = self._of_phase(self.mask_token, phase)
        x_RSD = put(mask_1SD.expand(x_RlD.shape[0], -1, -1), known_RK, rows_RKD)
        positions = self._of_phase(self.decoder_pos_embed_learned, phase)
        return torch.cat((buffer, x_RSD), dim=1) + positions

    def decode(self, phase: Phase, x_RLD: Tensor) -> Tensor:
        """Conditions z of all positions, (R, S, D), from the decoder input."""
        x_RLD = self._run(self.decoder_blocks, self.decoder_ada(phase), phase, x_RLD)
        x_RSD = self.decoder_norm(x_RLD)[:, self.config.buffer_size :]
        return x_RSD + self.diffusion_pos_embed_learned

    def forward(
        self,
        phase: Phase,
        cond_RD: Tensor,
        pivots: Tensor,
        dense_RNC: Tensor,
        known_RK: Tensor,
    ) -> Tensor:
        """Conditions z of all positions, (R, S, D).

        Args:
            cond_RD: class embeddings from `cond`, or other vectors in their place.
            pivots: tokens (R, P, C) in the pivot phase; in the dense phase z (R, P, D) of the step
                that predicted each pivot.
            dense_RNC: dense tokens.
            known_RK: known positions of every row, ascending, in 0..S-1; the others are ignored.
        """
        x_RlD = self.encode(phase, self.encoder_input(phase, cond_RD, pivots, dense_RNC, known_RK))
        return self.decode(phase, self.decoder_input(phase, x_RlD, known_RK))

    @staticmethod
    def _of_phase(table_1XD: Tensor, phase: Phase) -> Tensor:
        return table_1XD.chunk(2, dim=1)[PHASES.index(phase)]

    @staticmethod
    def _run(blocks: Iterable[ScaleAwareBlock], ada: Tensor, phase: Phase, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, block.modulation(ada, PHASES.index(phase)))
        return x
