"""Second and third stage: next-scale prediction, then masked prediction on the frozen result."""

from __future__ import annotations

import torch
from torch import Tensor

from hmar.hmar import HMAR, Branch
from hmar.training.config import LoopConfig, StageName, TransformerLossConfig
from hmar.training.fast import compile_
from hmar.training.loop import Metrics, Trainer
from hmar.training.losses import token_losses, token_weights
from hmar.training.quantize import encode_with_errors
from hmar.training.render import Renderer
from hmar.vae import VQVAE

MASK_PREFIXES = ("mask_blocks.", "mask_head_nm.", "mask_head.", "mask_embed.")


class TransformerStage:
    """Trains one branch on teacher-forced token pyramids of endless pictures.

    All scales of a picture are one packed sequence; every scale attends within itself. The
    next-scale stage trains everything; the masked stage trains the masked branch only.

    Args:
        branch: "ns" trains the base and the next-scale branch, "mask" the masked branch.
        model: on the training device; trained in place.
        tokenizer: frozen.
        renderer: source of pictures.
        config: optimisation settings.
        losses: what is seen and how it is weighted.
    """

    def __init__(
        self,
        branch: Branch,
        model: HMAR,
        tokenizer: VQVAE,
        renderer: Renderer,
        config: LoopConfig,
        losses: TransformerLossConfig,
    ) -> None:
        self.branch, self.model, self.tokenizer = (
            branch,
            model,
            tokenizer.eval().requires_grad_(False),
        )
        self.renderer, self.config, self.losses = renderer, config, losses
        for name, param in model.named_parameters():
            param.requires_grad_(name.startswith(MASK_PREFIXES) == (branch == "mask"))
        stage: StageName = "next-scale" if branch == "ns" else "masked"
        self.trainer = Trainer(stage, model, config)
        patch_nums, device = model.config.patch_nums, renderer.device
        self.weights_L = token_weights(patch_nums, losses.weight_peak, losses.weight_sigma).to(
            device
        )
        scale_L = torch.cat(
            [torch.full((pn * pn,), k, device=device) for k, pn in enumerate(patch_nums)]
        )
        self.scale_L, self.same_scale = scale_L, scale_L[:, None] == scale_L[None, :]
        if config.is_compiled:
            compile_(tokenizer.encoder, model)

    def run(self) -> None:
        self.trainer.run(self._ns_loss if self.branch == "ns" else self._mask_loss)

    def _ns_loss(self) -> tuple[Tensor, Metrics]:
        targets, seen, label_B = self._tokens()
        with torch.no_grad():
            maps, _ = self.tokenizer.quantize.teacher_maps(seen)
        loss_BL = token_losses(self._ns_logits(maps, label_B), torch.cat(targets, dim=1))
        return (loss_BL * self.weights_L).sum(dim=1).mean(), self._scale_metrics(loss_BL)

    def _mask_loss(self) -> tuple[Tensor, Metrics]:
        targets, seen, label_B = self._tokens()
        token_mask_BL = self._token_mask(len(label_B))
        target_BL = torch.cat(targets, dim=1)
        with torch.no_grad():
            maps, _ = self.tokenizer.quantize.teacher_maps(seen)
            # The masked pass still sees traces of the tokens it predicts again, through phi. While
            # sampling those are draws of the next-scale branch, so they are here, too.
            drawn_BL = self._draw(self._ns_logits(maps, label_B))
            present_BL = torch.where(token_mask_BL, drawn_BL, target_BL)
            present = present_BL.split([pn * pn for pn in self.model.config.patch_nums], dim=1)
            _, own = self.tokenizer.quantize.teacher_maps(present)
        model, rest = self.model, slice(1, self.model.config.seq_len)
        with self._autocast():
            cond_BC = model.cond(label_B)
            x = torch.cat(
                (
                    model.first_input(cond_BC),
                    model.mask_input(maps, own, token_mask_BL[:, 1:], rest),
                ),
                dim=1,
            )
            logits = model(x, cond_BC, "mask", self.same_scale)
        loss_BL = token_losses(logits, target_BL) * token_mask_BL
        weights_BL = self.weights_L * token_mask_BL
        return (loss_BL * self.weights_L).sum() / weights_BL.sum(), self._scale_metrics(
            loss_BL, token_mask_BL
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.renderer.device.type, torch.bfloat16)

    def _ns_logits(self, maps: Tensor, label_B: Tensor) -> Tensor:
        model = self.model
        with self._autocast():
            cond_BC = model.cond(label_B)
            first, rest = (
                model.first_input(cond_BC),
                model.ns_input(maps, slice(1, model.config.seq_len)),
            )
            return model(torch.cat((first, rest), dim=1), cond_BC, "ns", self.same_scale)

    @torch.no_grad()
    def _tokens(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Tokens to predict, tokens seen by finer scales, and labels of one batch, some dropped."""
        image, label_B = self.renderer.batch(self.config.batch_size)
        with self._autocast():
            latent = self.tokenizer.latent(image)
        share_B1 = self._rand(len(image), 1) * self.losses.noise_max
        share_B1 = share_B1 * (self._rand(len(image), 1) < self.losses.noise_share)
        error_BL = self._rand(len(image), len(self.weights_L)) < share_B1
        targets, seen = encode_with_errors(self.tokenizer.quantize, latent.float(), error_BL)
        dropped_B = self._rand(len(image)) < self.losses.label_dropout
        return targets, seen, torch.where(dropped_B, self.model.config.num_classes, label_B)

    def _token_mask(self, size: int) -> Tensor:
        """Positions to predict, boolean (B, L); shares per picture and scale: MaskGIT's cosine."""
        ratio_BS = torch.cos(0.5 * torch.pi * self._rand(size, self.model.config.num_scales))
        token_mask_BL = self._rand(size, len(self.weights_L)) < ratio_BS[:, self.scale_L]
        token_mask_BL[:, 0] = False  # scale 0 has no masked pass
        return token_mask_BL

    def _draw(self, logits_BLV: Tensor) -> Tensor:
        """One token per position from the softmax, by Gumbel noise."""
        u = torch.rand(
            logits_BLV.shape, generator=self.renderer.generator, device=logits_BLV.device
        )
        return (logits_BLV.float() - (-u.clamp_min(1e-20).log()).log()).argmax(dim=-1)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.renderer.generator, device=self.renderer.device)

    def _scale_metrics(self, loss_BL: Tensor, token_mask_BL: Tensor | None = None) -> Metrics:
        """Mean loss per token of every scale, by patch number."""
        chosen_BL = torch.ones_like(loss_BL) if token_mask_BL is None else token_mask_BL.float()
        patch_nums = self.model.config.patch_nums
        return {
            f"{pn}": (loss_BL.detach() * (here := chosen_BL * (self.scale_L == k))).sum()
            / here.sum().clamp_min(1)
            for k, pn in enumerate(patch_nums)
        }
