"""The quantizer in training: straight-through gradients, code restarts, tokens with errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmar.quant import Quantizer, flatten_map


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized batch.

    Attributes:
        f_hat: (B, Cvae, P, P), equal to the reconstruction, with the gradient of the latent.
        codebook_loss: pulls codes and phi towards the latent.
        commitment_loss: pulls the latent towards the codes.
        tokens: (B, L) token maps of all scales.
        residuals: (B, L, Cvae) what every token stands for, detached.
        relative_error: variance of what is left after the last scale, over that of the latent.
    """

    f_hat: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    tokens: Tensor
    residuals: Tensor
    relative_error: Tensor


def quantize_straight_through(quant: Quantizer, f_BCHW: Tensor) -> Quantized:
    """Residual quantization over all scales, differentiable in the latent, the codes and phi.

    Both losses are means over the scales of the squared distance between the latent and the
    reconstruction so far.
    """
    rest, f_hat = f_BCHW.detach(), torch.zeros_like(f_BCHW)
    codebook_loss = commitment_loss = f_BCHW.new_zeros(())
    tokens, residuals = [], []
    for k, pn in enumerate(quant.patch_nums):
        z_BChw = quant.downsample(rest, pn)
        with torch.no_grad():
            tokens.append(quant.nearest(z_BChw))
        residuals.append(flatten_map(z_BChw))
        added = quant.residual(quant.lookup(tokens[-1]), k)
        f_hat, rest = f_hat + added, rest - added.detach()
        codebook_loss = codebook_loss + F.mse_loss(f_hat, f_BCHW.detach())
        commitment_loss = commitment_loss + F.mse_loss(f_BCHW, f_hat.detach())
    S = len(quant.patch_nums)
    return Quantized(
        f_hat=f_BCHW + (f_hat - f_BCHW).detach(),
        codebook_loss=codebook_loss / S,
        commitment_loss=commitment_loss / S,
        tokens=torch.cat(tokens, dim=1),
        residuals=torch.cat(residuals, dim=1),
        relative_error=rest.var() / f_BCHW.detach().var(),
    )


class CodeUsage:
    """Running use of every code, and replacement of those that nothing is assigned to."""

    def __init__(self, vocab_size: int, device: torch.device, decay: float = 0.98) -> None:
        self.decay = decay
        self.count_V = torch.zeros(vocab_size, device=device)

    def update_(self, tokens_BL: Tensor) -> None:
        count_V = torch.bincount(tokens_BL.flatten(), minlength=len(self.count_V)).float()
        self.count_V.mul_(self.decay).add_(count_V, alpha=1 - self.decay)

    def perplexity(self) -> Tensor:
        """Number of equally used codes with the same entropy."""
        p_V = self.count_V / self.count_V.sum()
        return torch.exp(-(p_V * (p_V + 1e-12).log()).sum())

    @torch.no_grad()
    def restart_(
        self, codebook_VC: Tensor, residuals_BLC: Tensor, below: float, generator: torch.Generator
    ) -> Tensor:
        """Moves unused codes onto random residuals, in place; returns which, boolean (V,)."""
        V = len(self.count_V)
        mean = self.count_V.mean().clamp_min(1e-6)
        unused_V = self.count_V < below * mean
        candidates_NC = residuals_BLC.flatten(0, 1)
        pick_V = torch.randint(
            len(candidates_NC), (V,), generator=generator, device=candidates_NC.device
        )
        codebook_VC.copy_(torch.where(unused_V[:, None], candidates_NC[pick_V], codebook_VC))
        self.count_V.copy_(torch.where(unused_V, mean, self.count_V))
        return unused_V


@torch.no_grad()
def encode_with_errors(
    quant: Quantizer, f_BCHW: Tensor, error_BL: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Token maps to predict, and the token maps that the finer scales see.

    Where `error_BL` is True the seen token is that of the neighbouring picture of the batch, and
    the finer scales quantize what is left after it: they learn to correct a wrong choice. Batches
    are sorted by label, so the neighbour mostly has the same class.

    Args:
        f_BCHW: latent of the pictures.
        error_BL: boolean, over the packed pyramid.

    Returns:
        Tokens to predict and tokens seen, lists of (B, pn*pn).
    """
    rest, start = f_BCHW, 0
    targets, seen = [], []
    for k, pn in enumerate(quant.patch_nums):
        target_Bl = quant.nearest(quant.downsample(rest, pn))
        error_Bl = error_BL[:, start : start + pn * pn]
        seen_Bl = torch.where(error_Bl, target_Bl.roll(1, dims=0), target_Bl)
        rest = rest - quant.residual(quant.lookup(seen_Bl), k)
        targets.append(target_Bl)
        seen.append(seen_Bl)
        start += pn * pn
    return targets, seen
