"""Inputs of Hi-MAR's passes, and what PyTorch makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from export.himar.feeds import source
from hmar.himar import HiMAR, take
from runtime.himar_plan import HiMARSizes


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass of some images; in the first phase, predicted pivots are those after the known."""

    phase: Literal["pivot", "dense"]
    images: int
    known: int
    predicted: int = 0


def sizes_of(model: HiMAR) -> HiMARSizes:
    """What plans of the model's passes take."""
    config = model.config
    return HiMARSizes(
        width=config.embed_dim,
        heads=config.encoder_heads,
        hidden=round(config.embed_dim * config.mlp_ratio),
        depths={"encoder": config.encoder_depth, "decoder": config.decoder_depth},
        buffer=config.buffer_size,
        pivots=config.num_pivots,
        dense=config.num_dense,
        head_widths={"pivot": config.mlp_width, "dense": config.dit_width},
    )


def make_pass(model: HiMAR, of: Pass) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of the graph, and expected outputs in float32."""
    config, (N, K) = model.config, (of.images, of.known)
    g = torch.Generator().manual_seed(N + K)
    P, D, S = config.num_pivots, config.embed_dim, config.num_tokens
    cond = torch.randn((N, D), generator=g).half()
    pivots = torch.randn((N, P, config.token_channels), generator=g)
    dense = torch.randn((N, config.num_dense, config.token_channels), generator=g)
    small_z = torch.randn((N, P, D), generator=g).half()
    grid = P if of.phase == "pivot" else config.num_dense
    orders = torch.stack([torch.randperm(grid, generator=g) for _ in range(N)])
    known = orders[:, :K].sort(dim=1).values
    feeds = {"cond": cond}
    if of.phase == "pivot":
        predicted = orders[:, K : K + of.predicted].sort(dim=1).values
        positions, given = known, pivots
        feeds |= {"pivots": pivots, "predicted": predicted.int()}
    else:
        positions = torch.cat((torch.arange(P).expand(N, -1), known + P), dim=1)
        given = small_z.float()
        feeds |= {"dense": dense, "small_z": small_z}
    feeds |= {"known": known.int(), "source": source(positions, S).int()}
    device = model.fake_latent.device
    given, dense, positions = (x.to(device) for x in (given, dense, positions))
    with torch.inference_mode():
        z = model(of.phase, cond.float().to(device), given, dense, positions)
        if of.phase == "dense":
            return feeds, {"head_cond": model.dense_denoiser.cond(z[:, P:]).cpu()}
        z = take(z, predicted.to(device))
        return feeds, {"z": z.cpu(), "head_cond": model.pivot_denoiser.cond(z).cpu()}
