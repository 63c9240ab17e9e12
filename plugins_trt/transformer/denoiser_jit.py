"""The kernels of the denoisers' ends on PyTorch tensors, compiled at first use."""

from __future__ import annotations

import triton
from torch import Tensor

from plugins_trt.transformer import denoiser
from plugins_trt.transformer.tiles import ACTIVATE_BLOCK, EMBED_TILE, NOISE_DEPTH


def embed(
    x_PnC: Tensor, weights_CW: Tensor, bias_W: Tensor, pos_nW: Tensor | None, out_RW: Tensor
) -> Tensor:
    """Embedded state of all rows, into `out_RW`: R is a multiple of the positions P * n."""
    (R, W), (P, n, channels) = out_RW.shape, x_PnC.shape
    rows, columns = EMBED_TILE
    denoiser.embed_kernel[(-(-W // columns), -(-R // rows))](
        x_PnC,
        weights_CW,
        bias_W,
        bias_W if pos_nW is None else pos_nW,
        out_RW,
        R,
        P * n,
        n,
        W,
        CHANNELS=channels,
        HAS_POS=pos_nW is not None,
        BLOCK_M=rows,
        BLOCK_N=columns,
        OVERLAPS=False,
    )
    return out_RW


def activate(cond_RW: Tensor, times_TW: Tensor, timestep: Tensor, out_tRW: Tensor) -> Tensor:
    """SiLU of condition and time, into `out_tRW`, for every time step of `timestep`."""
    count, width = cond_RW.numel(), cond_RW.shape[-1]
    denoiser.activate_kernel[(-(-count // ACTIVATE_BLOCK), len(timestep))](
        cond_RW, times_TW, timestep, out_tRW, count, width, BLOCK=ACTIVATE_BLOCK, OVERLAPS=False
    )
    return out_tRW


def noise(
    x_RW: Tensor,
    ada_RA: Tensor,
    weights_OW: Tensor,
    bias_O: Tensor,
    guidance: Tensor | None,
    noise_PC: Tensor,
    variance_PC: Tensor | None,
    *,
    scale_at: int,
    shift_at: int,
    eps: float = 1e-6,
) -> Tensor:
    """The last layer, into `noise_PC` and `variance_PC`; guided if `guidance` is given."""
    (P, channels), W = noise_PC.shape, x_RW.shape[1]
    denoiser.noise_kernel[(P,)](
        x_RW,
        ada_RA,
        weights_OW,
        bias_O,
        bias_O if guidance is None else guidance,
        noise_PC,
        noise_PC if variance_PC is None else variance_PC,
        P,
        W,
        ada_RA.stride(0),
        scale_at,
        shift_at,
        eps,
        CHANNELS=channels,
        HALVES=1 if guidance is None else 2,
        HAS_VARIANCE=variance_PC is not None,
        BLOCK=triton.next_power_of_2(W),
        BLOCK_K=NOISE_DEPTH,
        OVERLAPS=False,
    )
    return noise_PC
