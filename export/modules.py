"""Tensor-in, tensor-out modules that the graphs are put together from.

Weights are inputs, so that a module is traced once and serves every block, scale and checkpoint.
Linear weights come as (in, out). Dtype: activations and weights in the bundle's precision, and
float32 where a name says `_f32`. N rows (the guided batch), l tokens, C width, Cvae latent
channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmar.quant import flatten_map
from plugins_trt.block_sparse_attn.spec import Attributes
from plugins_trt.block_sparse_attn.torch_op import attend


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, then `(1 + scale)` and `shift`."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class ClassEmbedding(nn.Module):
    """Class embeddings of labels, and their SiLU, which all modulations are linear in."""

    def forward(self, label: Tensor, class_emb: Tensor) -> tuple[Tensor, Tensor]:
        cond = F.embedding(label, class_emb)
        return cond, F.silu(cond)


class Modulation(nn.Module):
    """Modulation vectors (N, 1, k*C) of one block or head."""

    def forward(self, act: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (act @ weight + bias).unsqueeze(1)


class SharedModulation(nn.Module):
    """Modulation vectors (N, 1, 6C) of one block that adds its own to the shared projection."""

    def forward(self, shared: Tensor, own: Tensor) -> Tensor:
        return shared + own


class EmbedFirst(nn.Module):
    """Input of scale 0, (N, 1, C)."""

    def forward(self, cond: Tensor, pos: Tensor) -> Tensor:
        return cond.unsqueeze(1) + pos


class EmbedNs(nn.Module):
    """Input of the next-scale pass, (N, l, C), from the latent map `x_f32` (N, l, Cvae)."""

    def forward(self, x_f32: Tensor, word_embed: Tensor, pos: Tensor) -> Tensor:
        return x_f32.to(word_embed.dtype) @ word_embed + pos


class EmbedMask(nn.Module):
    """Input of a masked pass, (N, l, C); `h_f32` (N, l, Cvae) is this scale's own contribution."""

    def forward(
        self,
        x_f32: Tensor,
        h_f32: Tensor,
        token_mask: Tensor,
        word_embed: Tensor,
        mask_embed: Tensor,
        pos: Tensor,
    ) -> Tensor:
        h = torch.where(
            token_mask.unsqueeze(-1), mask_embed, h_f32.to(word_embed.dtype) @ word_embed
        )
        return x_f32.to(word_embed.dtype) @ word_embed + h + pos


class Block(nn.Module):
    """One transformer block around the block-sparse attention op."""

    def __init__(self, num_heads: int, head_dim: int, attributes: Attributes, eps: float) -> None:
        super().__init__()
        self.heads = (3, num_heads, head_dim)
        self.attributes, self.eps = attributes, eps

    def forward(
        self,
        x: Tensor,
        ada: Tensor,
        cu_seqlens: Tensor,
        scale_mul: Tensor | None,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor,
        fc2_weight: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = ada.chunk(6, dim=-1)
        qkv = norm_modulate(x, scale1, shift1, self.eps) @ qkv_weight + qkv_bias
        attn = attend(qkv.unflatten(-1, self.heads), cu_seqlens, scale_mul, self.attributes)
        x = x + gamma1 * (attn @ proj_weight + proj_bias)
        hidden = F.gelu(
            norm_modulate(x, scale2, shift2, self.eps) @ fc1_weight + fc1_bias, approximate="tanh"
        )
        return x + gamma2 * (hidden @ fc2_weight + fc2_bias)


class Head(nn.Module):
    """Logits (N, l, V) in float32, from float32 weights.

    Half-precision logits would flip close decisions.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, ada: Tensor, weight_f32: Tensor, bias_f32: Tensor) -> Tensor:
        scale, shift = ada.float().chunk(2, dim=-1)
        return norm_modulate(x.float(), scale, shift, self.eps) @ weight_f32 + bias_f32


def _lookup(tokens: Tensor, codebook: Tensor, up: Tensor | None) -> Tensor:
    """Codebook rows of a token map (B, pn, pn), enlarged by `up` (P, pn): (B, Cvae, P, P)."""
    h_BhwC = F.embedding(tokens, codebook)
    if up is None:
        return h_BhwC.permute(0, 3, 1, 2)
    h_BhWC = up @ h_BhwC  # over the columns, with rows as batch
    h_BWHC = up @ h_BhWC.transpose(1, 2)
    return h_BWHC.permute(0, 3, 2, 1)


def _phi(h: Tensor, weight: Tensor, bias: Tensor, ratio: float) -> Tensor:
    return h * (1 - ratio) + F.conv2d(h, weight, bias, padding=1) * ratio


def _reduce(map_BCHW: Tensor, down: Tensor | None) -> Tensor:
    """Area average by `down` (pn, P), flattened: (B, pn*pn, Cvae)."""
    if down is not None:
        map_BCHW = down @ map_BCHW @ down.transpose(0, 1)
    return flatten_map(map_BCHW)


class Quantize(nn.Module):
    """Adds a scale's tokens to `f_hat`; also the input of the next scale."""

    def __init__(self, phi_ratio: float) -> None:
        super().__init__()
        self.phi_ratio = phi_ratio

    def forward(
        self,
        tokens: Tensor,
        f_hat: Tensor,
        codebook: Tensor,
        phi_weight: Tensor,
        phi_bias: Tensor,
        up: Tensor | None,
        down: Tensor | None,
    ) -> tuple[Tensor, ...]:
        f_hat = f_hat + _phi(_lookup(tokens, codebook, up), phi_weight, phi_bias, self.phi_ratio)
        return (f_hat,) if up is None else (f_hat, _reduce(f_hat, down))


class MaskInput(nn.Module):
    """A scale's own contribution at its own size, (B, l, Cvae)."""

    def __init__(self, phi_ratio: float) -> None:
        super().__init__()
        self.phi_ratio = phi_ratio

    def forward(
        self,
        tokens: Tensor,
        codebook: Tensor,
        phi_weight: Tensor,
        phi_bias: Tensor,
        up: Tensor | None,
        down: Tensor | None,
    ) -> Tensor:
        return _reduce(
            _phi(_lookup(tokens, codebook, up), phi_weight, phi_bias, self.phi_ratio), down
        )


class LogProb(nn.Module):
    """Log-probability (B, L) of tokens under logits (B, L, V)."""

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        chosen = logits.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
        return chosen - logits.logsumexp(dim=-1)


class Decode(nn.Module):
    """`f_hat` (B, Cvae, P, P) float32 to images (B, 3, 16P, 16P) float32 in [0, 1]."""

    def __init__(self, decoder: nn.Module, post_quant_conv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv, self.dtype = decoder, post_quant_conv, dtype

    def forward(self, f_hat: Tensor) -> Tensor:
        image = self.decoder(self.post_quant_conv(f_hat.to(self.dtype))).float()
        return image.clamp(-1, 1) / 2 + 0.5


class Latent(nn.Module):
    """Images (B, 3, 16P, 16P) in [0, 1] to the latent before quantization, (B, Cvae, P, P)."""

    def __init__(self, encoder: nn.Module, quant_conv: nn.Module) -> None:
        super().__init__()
        self.encoder, self.quant_conv = encoder, quant_conv

    def forward(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image * 2 - 1))


class QuantizeRest(nn.Module):
    """One scale of the encoder's quantizer: nearest rows of the rest, taken from it."""

    def __init__(self, phi_ratio: float) -> None:
        super().__init__()
        self.phi_ratio = phi_ratio

    def forward(
        self,
        rest: Tensor,
        f_hat: Tensor,
        codebook: Tensor,
        codebook_norm: Tensor,
        phi_weight: Tensor,
        phi_bias: Tensor,
        up: Tensor | None,
        down: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z_BChw = rest if down is None else down @ rest @ down.transpose(0, 1)
        # |z|^2 is the same for all rows, so it does not enter the comparison
        distance = codebook_norm - 2 * (z_BChw.permute(0, 2, 3, 1) @ codebook.transpose(0, 1))
        tokens = distance.argmin(dim=-1).to(torch.int32)
        added = _phi(_lookup(tokens, codebook, up), phi_weight, phi_bias, self.phi_ratio)
        return tokens.flatten(1), rest - added, f_hat + added
