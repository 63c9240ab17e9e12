"""First stage: the multi-scale VQVAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hmar.training.config import LoopConfig, TokenizerLossConfig
from hmar.training.fast import compile_
from hmar.training.loop import Metrics, Trainer
from hmar.training.losses import edge_loss, psnr, ssim_loss
from hmar.training.quantize import CodeUsage, Quantized, quantize_straight_through
from hmar.training.render import Renderer
from hmar.training.sheet import save_sheet
from hmar.vae import VQVAE


class TokenizerStage:
    """Trains encoder, decoder, codebook and phi together.

    Args:
        tokenizer: on the training device; trained in place.
        renderer: source of pictures.
        config: optimisation settings.
        losses: loss weights.
    """

    def __init__(
        self, tokenizer: VQVAE, renderer: Renderer, config: LoopConfig, losses: TokenizerLossConfig
    ) -> None:
        self.tokenizer, self.renderer, self.config, self.losses = (
            tokenizer,
            renderer,
            config,
            losses,
        )
        self.trainer = Trainer("tokenizer", tokenizer, config)
        self.usage = CodeUsage(tokenizer.config.vocab_size, renderer.device)
        self.last: Quantized | None = None
        if config.is_compiled:
            compile_(tokenizer.encoder, tokenizer.decoder)

    def run(self) -> None:
        self.trainer.run(self._loss, self._after_step)

    def _loss(self) -> tuple[Tensor, Metrics]:
        image, _ = self.renderer.batch(self.config.batch_size)
        tokenizer, weights = self.tokenizer, self.losses
        with torch.autocast(image.device.type, torch.bfloat16):
            latent = tokenizer.latent(image)
        quantized = self.last = quantize_straight_through(tokenizer.quantize, latent.float())
        with torch.autocast(image.device.type, torch.bfloat16):
            decoded = tokenizer.decoder(tokenizer.post_quant_conv(quantized.f_hat))
        decoded = (
            decoded.float()
        )  # not clamped: a clamp would stop the gradient of saturated pixels
        l1, edge, ssim = (
            F.l1_loss(decoded, image),
            edge_loss(decoded, image),
            ssim_loss(decoded, image),
        )
        vq = quantized.codebook_loss + weights.commitment * quantized.commitment_loss
        loss = l1 + weights.edge * edge + weights.ssim * ssim + vq
        self.usage.update_(quantized.tokens)
        metrics = {
            "l1": l1, "edge": edge, "ssim": ssim, "vq": vq, "rest": quantized.relative_error,
            "psnr": psnr(decoded.detach(), image).mean(), "codes": self.usage.perplexity(),
        }  # fmt: skip
        return loss, metrics

    def _after_step(self) -> None:
        step, every = self.trainer.step, self.losses.restart_every
        if step % every or self.trainer.is_cooling or self.last is None:
            return
        codebook = self.tokenizer.quantize.embedding.weight
        moved_V = self.usage.restart_(
            codebook.data, self.last.residuals, self.losses.restart_below, self.renderer.generator
        )
        self.trainer.ema.quantize.embedding.weight.data[moved_V] = codebook.data[moved_V]
        for moment in ("exp_avg", "exp_avg_sq"):
            self.trainer.optimizer.state[codebook][moment][moved_V] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionReport:
    """Reconstruction of fresh pictures: mean PSNR in dB, mean absolute error in [-1, 1] units."""

    psnr_db: float
    l1: float


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: VQVAE,
    renderer: Renderer,
    num_images: int,
    sheet: Path | None = None,
    batch_size: int = 64,
) -> ReconstructionReport:
    """Reconstructs fresh pictures in float32; `sheet` gets pairs of original and reconstruction."""
    psnrs, errors = [], []
    for start in range(0, num_images, batch_size):
        image, _ = renderer.batch(min(batch_size, num_images - start))
        _, f_hats = tokenizer.quantize.encode(tokenizer.latent(image))
        decoded = tokenizer.decode(f_hats[-1])
        psnrs.append(psnr(decoded, image))
        errors.append((decoded - image).abs().mean(dim=(1, 2, 3)))
        if sheet is not None and start == 0:
            pairs = torch.stack((image, decoded), dim=1)[:: max(1, len(image) // 39)].flatten(0, 1)
            save_sheet(pairs, 12, sheet)
    return ReconstructionReport(
        psnr_db=torch.cat(psnrs).mean().item(), l1=torch.cat(errors).mean().item()
    )
