"""Slow, plain generation with injected randomness: what every backend must reproduce.

Follows the order of operations of HMAR's sampler step by step, one torch call after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmar.hmar import HMAR
from hmar.layers import KVCache
from hmar.quant import flatten_map
from hmar.vae import VQVAE

Draw = Callable[[str, Tensor], Tensor]
"""(name of the draw, truncated logits (B, l, V)) -> tokens (B, l)."""
Record = Callable[[str, Tensor], None]

MASK_CFG_RATIO = 1e-6  # guidance of masked passes, as a fraction of cfg


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """Settings of one generation.

    Attributes:
        cfg: guidance strength; logits are `(1+t) cond - t uncond` with `t = cfg * si / (S - 1)`.
        top_k: keep the k largest logits (equal ones stay); 0 = off.
        top_p: keep the smallest set with this probability mass; 0 = off.
        mask_schedule: per scale `[n0, n1, ..., nm]`; pass s re-predicts `n_s + ... + n_m` tokens.
            None = no masked passes.
        kv_cache: let every scale attend to all earlier ones (no masked passes then).
    """

    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    mask_schedule: Sequence[Sequence[int]] | None = None
    kv_cache: bool = False


def truncate(logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything outside top-k and the nucleus set to -inf."""
    logits = logits_BlV.clone()
    if top_k > 0:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits[logits < kth] = -math.inf
    if top_p > 0:
        ascending, order = logits.sort(dim=-1, stable=True)
        outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        outside[..., -1] = False
        logits[torch.zeros_like(outside).scatter(-1, order, outside)] = -math.inf
    return logits


def draw_argmax(name: str, logits_BlV: Tensor) -> Tensor:
    """The most probable token, whatever the seed."""
    return logits_BlV.argmax(dim=-1)


def draw_inverse_cdf(uniforms: Mapping[str, np.ndarray]) -> Draw:
    """Draws by inverse CDF from uniforms keyed by draw name, float64 arrays (B, l) in [0, 1)."""

    def draw(name: str, logits_BlV: Tensor) -> Tensor:
        cdf = logits_BlV.double().softmax(dim=-1).cumsum(dim=-1)
        u = torch.from_numpy(np.asarray(uniforms[name]))[..., None]
        return (cdf > u * cdf[..., -1:]).int().argmax(dim=-1)

    return draw


def draw_forced(tokens: Mapping[str, np.ndarray]) -> Draw:
    """Returns given token maps, keyed by scale (`s3`): teacher forcing."""
    return lambda name, logits: torch.from_numpy(tokens[name.split("_")[0]]).long()


def guide(raw_2BlV: Tensor, t: float) -> Tensor:
    """`(1 + t) cond - t uncond` of a guided batch whose first half is conditional."""
    cond, uncond = raw_2BlV.chunk(2)
    return (1 + t) * cond - t * uncond


def confidence(logits_BlV: Tensor, tokens_Bl: Tensor) -> Tensor:
    """Probability of each token under the truncated distribution, (B, l)."""
    return logits_BlV.softmax(dim=-1).gather(-1, tokens_Bl[..., None])[..., 0]


def guided_labels(model: HMAR, labels: Sequence[int]) -> Tensor:
    """Labels of the guided batch (2B,): the given ones (-1 = no class), then "no class" B times."""
    none = model.config.num_classes
    return torch.tensor([none if y == -1 else y for y in labels] + [none] * len(labels))


@torch.inference_mode()
def generate(
    model: HMAR,
    tokenizer: VQVAE,
    labels: Sequence[int],
    config: ReferenceConfig,
    draw: Draw,
    record: Record = lambda name, value: None,
) -> Tensor:
    """Images (B, 3, 16P, 16P) in [0, 1].

    Args:
        labels: one class per image, -1 = no class.
        draw: chooses tokens; called as `s{k}_ns` and `s{k}_m{j}`.
        record: receives every intermediate result under the names of the golden traces.
    """
    quant, S = tokenizer.quantize, model.config.num_scales
    cond_2BC = model.cond(guided_labels(model, labels))
    B, P = len(labels), quant.side
    f_hat = torch.zeros(B, tokenizer.config.latent_channels, P, P)
    cache: KVCache | None = {} if config.kv_cache else None

    def sample(name: str, x_2BlC: Tensor, branch: str, t: float) -> tuple[Tensor, Tensor]:
        raw = model(x_2BlC, cond_2BC, branch, cache=cache)
        guided = guide(raw, t)
        logits = truncate(guided, config.top_k, config.top_p)
        tokens = draw(name, logits)
        record(f"{name}_x", x_2BlC)
        record(f"{name}_raw", raw)
        record(f"{name}_guided", guided)
        record(f"{name}_kept", logits.isfinite().sum(-1))
        record(f"{name}_drawn", tokens)
        return tokens, logits

    for k, (pn, positions) in enumerate(
        zip(model.config.patch_nums, model.config.scale_slices(), strict=True)
    ):
        f_hat_in = quant.downsample(f_hat, pn)
        x = (
            model.first_input(cond_2BC)
            if k == 0
            else model.ns_input(flatten_map(f_hat_in).repeat(2, 1, 1), positions)
        )
        tokens, logits = sample(f"s{k}_ns", x, "ns", config.cfg * k / (S - 1))
        record(f"s{k}_ns_tokens", tokens)

        entry = list(config.mask_schedule[k]) if config.mask_schedule is not None else []
        idx = torch.arange(pn * pn).expand(B, -1)
        for j in range(1, len(entry) if k > 0 else 0):
            conf = confidence(logits, tokens).gather(1, idx)
            record(f"s{k}_ns_conf" if j == 1 else f"s{k}_m{j - 1}_conf", conf)
            idx = idx.gather(1, conf.argsort(dim=1, stable=True)[:, : sum(entry[j:])])
            token_mask = torch.zeros(B, pn * pn, dtype=torch.bool).scatter(1, idx, True)
            h_in = quant.masked_h(quant.lookup(tokens), k)
            x = model.mask_input(
                flatten_map(f_hat_in).repeat(2, 1, 1),
                flatten_map(h_in).repeat(2, 1, 1),
                token_mask.repeat(2, 1),
                positions,
            )
            drawn, logits = sample(f"s{k}_m{j}", x, "mask", config.cfg * MASK_CFG_RATIO)
            tokens = torch.where(token_mask, drawn, tokens)
            for name, value in (
                ("tokens", tokens),
                ("idx_to_mask", idx),
                ("f_hat_in", f_hat_in),
                ("h_in", h_in),
            ):
                record(f"s{k}_m{j}_{name}", value)

        f_hat = quant.commit(f_hat, quant.lookup(tokens), k)
        record(f"s{k}_tokens", tokens)
        record(f"s{k}_f_hat", f_hat)
        if k + 1 < S:
            record(f"s{k}_next", quant.downsample(f_hat, model.config.patch_nums[k + 1]))

    image = tokenizer.decode(f_hat) / 2 + 0.5
    record("image", image)
    return image


@torch.inference_mode()
def score(
    model: HMAR,
    tokenizer: VQVAE,
    labels: Sequence[int],
    tokens: Sequence[Tensor],
    token_mask_BL: Tensor | None,
) -> dict[str, Tensor]:
    """Teacher-forced logits of the heads over the whole pyramid; each scale attends within itself.

    Args:
        labels: one class per image, -1 = no class.
        tokens: token maps of all scales, each (B, pn*pn).
        token_mask_BL: boolean, True where the masked head does not see the token; scale 0 is
            ignored. None = the next-scale head only.

    Returns:
        `ns_logits`, `mask_logits` (B, L, V) and the maps behind them, `x_ns`, `x_mask`
        (B, L-1, Cvae); without a token mask only the first of each.
    """
    none = model.config.num_classes
    cond_BC = model.cond(torch.tensor([none if y == -1 else y for y in labels]))
    x_ns, x_mask = tokenizer.quantize.teacher_maps(tokens)
    first, rest = model.first_input(cond_BC), slice(1, model.config.seq_len)
    scale_L = torch.cat([torch.full((pn * pn,), k) for k, pn in enumerate(model.config.patch_nums)])
    same_scale = scale_L[:, None] == scale_L[None, :]
    ns_input = torch.cat((first, model.ns_input(x_ns, rest)), dim=1)
    results = {"x_ns": x_ns, "ns_logits": model(ns_input, cond_BC, "ns", same_scale)}
    if token_mask_BL is None:
        return results
    mask_input = torch.cat(
        (first, model.mask_input(x_ns, x_mask, token_mask_BL[:, 1:], rest)), dim=1
    )
    return {
        **results,
        "x_mask": x_mask,
        "mask_logits": model(mask_input, cond_BC, "mask", same_scale),
    }
