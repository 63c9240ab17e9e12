"""The kernels on PyTorch tensors, compiled at first use."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins_trt.glue import kernel
from plugins_trt.glue.tiles import (
    COLUMNS_BLOCK,
    EMBED_TILE,
    MODULATION_ROWS,
    MODULATION_TILE,
    PIXELS_BLOCK,
    WINDOWS,
    bicubic_taps,
    window,
)


def embed_classes(labels_N: Tensor, class_emb: Tensor, cond_NC: Tensor, act_NC: Tensor) -> None:
    """Class embeddings into `cond_NC`, their SiLU into `act_NC`."""
    N, C = cond_NC.shape
    grid = (-(-C // COLUMNS_BLOCK), N)
    kernel.class_kernel[grid](labels_N, class_emb, cond_NC, act_NC, C, BLOCK=COLUMNS_BLOCK)


def modulate(act_NC: Tensor, weights: Tensor, biases: Tensor, out_NLw: Tensor) -> None:
    """act @ weights[i] + biases[i] of all layers i; a layer's bias lies behind its weights.

    Args:
        weights: (L, C, w), a view with the stride that `biases` (L, w) has, too.
    """
    (N, C), (L, _, width) = act_NC.shape, weights.shape
    assert weights.stride(0) == biases.stride(0) or L == 1
    rows = next((r for r in MODULATION_ROWS if r >= N), MODULATION_ROWS[-1])
    grid = (width // MODULATION_TILE["BLOCK_N"], L, -(-N // rows))
    kernel.modulation_kernel[grid](
        act_NC,
        weights,
        biases,
        out_NLw,
        N,
        C,
        width,
        weights.stride(0),
        BLOCK_M=rows,
        **MODULATION_TILE,
    )


def add_own(shared_Nw: Tensor, own_Lw: Tensor, out_NLw: Tensor) -> None:
    """shared + own[i] of all layers i."""
    N, L, width = out_NLw.shape
    grid = (-(-width // COLUMNS_BLOCK), L, N)
    kernel.shared_modulation_kernel[grid](
        shared_Nw, own_Lw, out_NLw, width, own_Lw.stride(0), BLOCK=COLUMNS_BLOCK
    )


def embed_first(cond_NC: Tensor, pos: Tensor, out_N1C: Tensor) -> None:
    """Input of the first scale."""
    N, C = cond_NC.shape
    grid = (-(-C // COLUMNS_BLOCK), N)
    kernel.first_kernel[grid](cond_NC, pos, out_N1C, C, BLOCK=COLUMNS_BLOCK)


def embed(
    map_NlK: Tensor,
    word_embed_KC: Tensor,
    pos: Tensor,
    positions_l: Tensor,
    out_NlC: Tensor,
    masked: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Input of a pass, a masked one with `masked`: own contribution, mask and its embedding."""
    N, l, K = map_NlK.shape
    C = word_embed_KC.shape[1]
    h, token_mask, mask_embed = masked or (map_NlK, positions_l, pos)
    grid = (C // EMBED_TILE["BLOCK_N"], -(-N * l // EMBED_TILE["BLOCK_M"]))
    kernel.embed_kernel[grid](
        map_NlK,
        h,
        token_mask,
        word_embed_KC,
        mask_embed,
        pos,
        positions_l,
        out_NlC,
        N * l,
        l,
        C,
        HAS_MASK=masked is not None,
        CHANNELS=K,
        **EMBED_TILE,
    )


def enlarge(tokens_Bhw: Tensor, codebook_VC: Tensor, out_BHWC: Tensor) -> None:
    """Codebook rows of a token map, enlarged bicubically."""
    (B, pn, _), (_, side, _, C) = tokens_Bhw.shape, out_BHWC.shape
    taps, shares = (torch.from_numpy(a).to(out_BHWC.device) for a in bicubic_taps(side, pn))
    kernel.enlarge_kernel[(-(-side * side // PIXELS_BLOCK), B)](
        tokens_Bhw, codebook_VC, taps, shares, out_BHWC, side, pn, CHANNELS=C, BLOCK=PIXELS_BLOCK
    )


def phi(
    h_BHWC: Tensor, weights_33CC: Tensor, bias_C: Tensor, f_hat: Tensor | None, out_BCHW: Tensor
) -> None:
    """phi of a map, plus `f_hat` if there is one."""
    B, C, side, _ = out_BCHW.shape
    kernel.phi_kernel[(-(-side * side // PIXELS_BLOCK), B)](
        h_BHWC,
        weights_33CC,
        bias_C,
        out_BCHW if f_hat is None else f_hat,
        out_BCHW,
        side,
        ADDS=f_hat is not None,
        CHANNELS=C,
        BLOCK=PIXELS_BLOCK,
    )


def reduce(planes_BCHW: Tensor, out_BlC: Tensor) -> None:
    """Area averages on a grid of l = pn * pn cells."""
    B, C, side, _ = planes_BCHW.shape
    pn = round(out_BlC.shape[1] ** 0.5)
    size = next(w for w in WINDOWS if w >= window(side, pn))
    kernel.reduce_kernel[(pn * pn, B)](planes_BCHW, out_BlC, side, pn, CHANNELS=C, WINDOW=size)
