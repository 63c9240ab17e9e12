"""Slow, plain Hi-MAR generation with injected randomness: what every backend must reproduce.

Follows the order of operations of Hi-MAR's sampler step by step, one torch call after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hmar.config import HiMARConfig
from hmar.diffusion import Record, diffusion_schedule, sample_tokens
from hmar.himar import HiMAR, Phase, put, take
from hmar.himar_schedule import HiMARSampling, plan
from hmar.kl_vae import KLVAE

Noise = Callable[[Phase, int, Tensor, int], Tensor]
"""(phase, step, positions (B, n) within the phase's grid, number of the draw) -> (B, n, C).

The draws of one step are numbered as in `hmar.diffusion.Noise`.
"""

SMALL_SIDE_PX = 64


@torch.inference_mode()
def generate(
    model: HiMAR,
    vae: KLVAE,
    cond_BD: Tensor,
    orders_BS: Tensor,
    sampling: HiMARSampling,
    noise: Noise,
    record: Record = lambda name, value: None,
) -> Tensor:
    """Images (B, 3, 16G, 16G) in [-1, 1], not clamped, G = dense side; see `generate_tokens`."""
    small, dense = generate_tokens(model, cond_BD, orders_BS, sampling, noise, record)
    small_image, image = vae.decode(small), vae.decode(dense)
    record("image", image)
    record("small_image", small_image)
    record("small_image_64", F.interpolate(small_image, (SMALL_SIDE_PX,) * 2, mode="bicubic"))
    return image


@torch.inference_mode()
def generate_tokens(
    model: HiMAR,
    cond_BD: Tensor,
    orders_BS: Tensor,
    sampling: HiMARSampling,
    noise: Noise,
    record: Record = lambda name, value: None,
) -> tuple[Tensor, Tensor]:
    """Maps of the pivots and of the dense tokens, (B, C, side, side).

    Args:
        cond_BD: class embeddings from `model.cond`, or other vectors in their place.
        orders_BS: per image a permutation of the pivots 0..P-1, then one of the dense positions
            P..S-1; tokens become known from the end of each.
        noise: standard normal numbers by name.
        record: receives every intermediate result under the names of the golden traces; those of a
            step once per step.
    """
    config, P = model.config, model.config.num_pivots
    order_BP, order_BN = orders_BS[:, :P], orders_BS[:, P:] - P
    pivots_BPC, small_z_BPD = sample_pivots(model, cond_BD, order_BP, sampling, noise, record)
    dense_BNC = sample_dense(model, cond_BD, small_z_BPD, order_BN, sampling, noise, record)
    small, dense = to_map(pivots_BPC, config.pivot_side), to_map(dense_BNC, config.dense_side)
    record("small_tokens", small)
    record("dense_tokens", dense)
    return small, dense


def sample_pivots(
    model: HiMAR,
    cond_BD: Tensor,
    order_BP: Tensor,
    sampling: HiMARSampling,
    noise: Noise,
    record: Record,
) -> tuple[Tensor, Tensor]:
    """Pivot tokens (B, P, C), and of each the z (B, P, D) of the step that predicted it."""
    config, B = model.config, cond_BD.shape[0]
    schedule = diffusion_schedule(sampling.pivot_respacing)
    cond_RD = guided_rows(model, cond_BD, sampling.re_cfg)
    halves = cond_RD.shape[0] // B
    pivots_BPC = cond_BD.new_zeros(B, config.num_pivots, config.token_channels)
    dense_RNC = cond_BD.new_zeros(halves * B, config.num_dense, config.token_channels)
    small_z_BPD = cond_BD.new_zeros(B, config.num_pivots, config.embed_dim)
    record("p1.tokens", pivots_BPC)

    steps = plan(config.num_pivots, config.pivot_steps, sampling.re_cfg, sampling.cfg_schedule)
    for s, step in enumerate(steps):
        known_BK = order_BP[:, step.unknown :].sort(dim=1).values
        predicted_Bn = order_BP[:, step.remaining : step.unknown].sort(dim=1).values
        z_RSD = model(
            "pivot", cond_RD, pivots_BPC.repeat(halves, 1, 1), dense_RNC, known_BK.repeat(halves, 1)
        )
        z_RnD = take(z_RSD, predicted_Bn.repeat(halves, 1))
        tokens_BnC = sample_tokens(
            model.pivot_denoiser,
            schedule,
            z_RnD,
            partial(noise, "pivot", s, predicted_Bn),
            weight=step.weight,
            temperature=sampling.temperature,
        )
        pivots_BPC = put(pivots_BPC, predicted_Bn, tokens_BnC)
        small_z_BPD = put(small_z_BPD, predicted_Bn, z_RnD[:B])
        record("p1.mask", unknown_mask(known_BK, config.num_tokens))
        record("p1.cfg", torch.tensor(step.weight))
        record("p1.head_rows", torch.tensor(halves * predicted_Bn.numel()))
        record("p1.z", z_RSD[:, : config.num_pivots])
        if s == 0:
            record("p1.z_first", z_RSD)
        record("p1.tokens", pivots_BPC)
    return pivots_BPC, small_z_BPD


def sample_dense(
    model: HiMAR,
    cond_BD: Tensor,
    small_z_BPD: Tensor,
    order_BN: Tensor,
    sampling: HiMARSampling,
    noise: Noise,
    record: Record,
) -> Tensor:
    """Dense tokens (B, N, C)."""
    config, B = model.config, cond_BD.shape[0]
    P, N = config.num_pivots, config.num_dense
    schedule = diffusion_schedule(sampling.dense_respacing)
    cond_RD = guided_rows(model, cond_BD, sampling.cfg)
    halves = cond_RD.shape[0] // B
    small_z_RPD = small_z_BPD.repeat(halves, 1, 1)  # of the conditional half for both
    pivot_positions_BP = torch.arange(P, device=cond_BD.device).expand(B, -1)
    positions_BN = torch.arange(N, device=cond_BD.device).expand(B, -1)
    dense_BNC = cond_BD.new_zeros(B, N, config.token_channels)
    record("small_z", small_z_RPD)
    record("p2.tokens", dense_BNC)

    for k, step in enumerate(plan(N, sampling.num_iter, sampling.cfg, sampling.cfg_schedule)):
        known_dense_BK = order_BN[:, step.unknown :].sort(dim=1).values
        known_BK = torch.cat((pivot_positions_BP, known_dense_BK + P), dim=1)
        z_RSD = model(
            "dense",
            cond_RD,
            small_z_RPD,
            dense_BNC.repeat(halves, 1, 1),
            known_BK.repeat(halves, 1),
        )
        unknown_BN = unknown_mask(known_dense_BK, N)
        sampled_BNC = sample_tokens(
            model.dense_denoiser,
            schedule,
            z_RSD[:, P:],
            partial(noise, "dense", k, positions_BN),
            weight=step.weight,
            temperature=sampling.temperature,
            held=(~unknown_BN, dense_BNC),
        )
        # all that was unknown, also what later steps replace
        dense_BNC = torch.where(unknown_BN[..., None], sampled_BNC, dense_BNC)
        record("p2.mask", unknown_mask(known_BK, config.num_tokens))
        record("p2.cfg", torch.tensor(step.weight))
        record("p2.z", z_RSD[:, P:])
        if k == 0:
            record("p2.z_first", z_RSD)
        record("p2.head_out", to_map(sampled_BNC, config.dense_side))
        record("p2.tokens", dense_BNC)
    return dense_BNC


def draw_orders(rng: np.random.RandomState, num_images: int, config: HiMARConfig) -> Tensor:
    """Orders of generation as the published sampler draws them, (B, S); see `generate_tokens`."""
    P, S = config.num_pivots, config.num_tokens
    grids = [list(grid) for _ in range(num_images) for grid in (range(P), range(P, S))]
    for grid in grids:
        rng.shuffle(grid)
    return torch.tensor([position for grid in grids for position in grid]).view(num_images, S)


def guided_rows(model: HiMAR, cond_BD: Tensor, cfg: float) -> Tensor:
    """Conditions of the batch: the given ones, and with guidance as many without condition."""
    return cond_BD if cfg == 1 else torch.cat((cond_BD, model.fake_latent.expand_as(cond_BD)))


def unknown_mask(known_BK: Tensor, num_tokens: int) -> Tensor:
    """Boolean (B, num_tokens), False at the given positions."""
    mask = torch.ones(known_BK.shape[0], num_tokens, dtype=torch.bool, device=known_BK.device)
    return mask.scatter(1, known_BK, False)


def to_map(tokens_BnC: Tensor, side: int) -> Tensor:
    """(B, side*side, C) -> (B, C, side, side), rows of the map one after the other."""
    return tokens_BnC.transpose(1, 2).unflatten(2, (side, side))


def to_uint8(image_B3HW: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 of images in [-1, 1], rounded half to even."""
    return ((image_B3HW + 1) / 2 * 255).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
