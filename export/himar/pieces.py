"""Traced pieces of Hi-MAR, each traced once; see `export.pieces`."""

from __future__ import annotations

from functools import cached_property, lru_cache

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.himar import modules
from export.pieces import LENGTH, N, blank, run_passes, trace_network
from export.to_onnx import Examples, trace
from hmar.config import HiMARConfig, KLVAEConfig
from hmar.kl_vae import KLVAE


class Pieces:
    """Graphs of the modules in `export.himar.modules` for one model's sizes and precision."""

    def __init__(
        self, model: HiMARConfig, vae: KLVAEConfig, dtype: torch.dtype, opset: int
    ) -> None:
        self.model, self.vae, self.dtype, self.opset = model, vae, dtype, opset
        self.block = lru_cache(self._trace_block)
        self.final = lru_cache(self._trace_final)
        self.decode = lru_cache(self._trace_decode)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def _linear(self, name: str, width: int, out: int) -> dict[str, Tensor]:
        return {f"{name}_weight": self._empty(width, out), f"{name}_bias": self._empty(out)}

    def _mlp(self, width: int, hidden: int) -> dict[str, Tensor]:
        return self._linear("fc1", width, hidden) | self._linear("fc2", hidden, width)

    def _attention(self, width: int) -> dict[str, Tensor]:
        return self._linear("qkv", width, 3 * width) | self._linear("proj", width, width)

    def _trace(
        self, module: nn.Module, inputs: Examples, outputs: list[str], **dynamic: tuple[int, ...]
    ) -> ir.Graph:
        return run_passes(trace(module, inputs, outputs, dynamic, self.opset), self.opset)

    @cached_property
    def norm(self) -> ir.Graph:
        D = self.model.embed_dim
        inputs = {
            "x": self._empty(N, LENGTH, D),
            "weight": self._empty(D),
            "bias": self._empty(D),
        }
        return self._trace(modules.Norm(self.model.norm_eps), inputs, ["y"], x=(0, 1))

    def _trace_block(self, num_heads: int) -> ir.Graph:
        """A scale-aware block of the encoder or the decoder."""
        D = self.model.embed_dim
        names = (
            "norm1_weight",
            "norm1_bias",
            "gate1",
            "norm2_weight",
            "norm2_bias",
            "gate2",
        )
        inputs = {
            "x": self._empty(N, LENGTH, D),
            **{name: self._empty(D) for name in names},
            **self._attention(D),
            **self._mlp(D, round(D * self.model.mlp_ratio)),
        }
        module = modules.Block(num_heads, D // num_heads, self.model.norm_eps)
        return self._trace(module, inputs, ["y"], x=(0, 1))

    @cached_property
    def res_block(self) -> ir.Graph:
        W = self.model.mlp_width
        inputs = {
            "x": self._empty(N, LENGTH, W),
            "ada": self._empty(N, LENGTH, 3 * W),
            "norm_weight": self._empty(W),
            "norm_bias": self._empty(W),
            **self._mlp(W, W),
        }
        module = modules.ResBlock(self.model.norm_eps)
        return self._trace(module, inputs, ["y"], x=(0, 1), ada=(0, 1))

    @cached_property
    def dit_block(self) -> ir.Graph:
        W, heads = self.model.dit_width, self.model.dit_heads
        inputs = {
            "x": self._empty(N, LENGTH, W),
            "act": self._empty(N, LENGTH, W),
            **self._linear("ada", W, 6 * W),
            **self._attention(W),
            **self._mlp(W, round(W * self.model.dit_mlp_ratio)),
        }
        module = modules.DiTBlock(heads, W // heads, self.model.norm_eps)
        return self._trace(module, inputs, ["y"], x=(0, 1), act=(0, 1))

    def _trace_final(self, denoiser: str) -> ir.Graph:
        """The last layer of a denoiser, "mlp" or "dit"."""
        model, C = self.model, self.model.token_channels
        width, out = (model.mlp_width, 2 * C) if denoiser == "mlp" else (model.dit_width, C)
        inputs = {
            "x": self._empty(N, LENGTH, width),
            "ada": self._empty(N, LENGTH, 2 * width),
            "weight_f32": torch.empty(width, out),
            "bias_f32": torch.empty(out),
        }
        module = modules.FinalLayer(model.norm_eps)
        return self._trace(module, inputs, ["out"], x=(0, 1), ada=(0, 1))

    def _trace_decode(self, side: int) -> ir.Graph:
        """The weights are inputs, named as in the autoencoder."""
        vae = _shapes_only(self.vae)
        decoder, conv = (blank(m, self.dtype) for m in (vae.decoder, vae.post_quant_conv))
        module = modules.Decode(decoder, conv, self.vae.latent_scale, side, self.dtype)
        operand = torch.empty(N, side * side, self.vae.latent_channels)
        return trace_network(module, operand, ["image"], self.opset)

    @cached_property
    def encode(self) -> ir.Graph:
        """The weights are inputs, named as in the autoencoder."""
        vae = _shapes_only(self.vae)
        encoder, conv = (blank(m, torch.float32) for m in (vae.encoder, vae.quant_conv))
        module = modules.Encode(encoder, conv, self.vae.latent_scale)
        side_px = self.model.dense_side * self.vae.downsampling
        return trace_network(
            module, torch.empty(N, 3, side_px, side_px), ["tokens", "std"], self.opset
        )


@lru_cache(maxsize=4)
def pieces_for(model: HiMARConfig, vae: KLVAEConfig, dtype: torch.dtype, opset: int) -> Pieces:
    """Pieces of a model, kept for further exports of models of the same sizes."""
    return Pieces(model, vae, dtype, opset)


def _shapes_only(config: KLVAEConfig) -> KLVAE:
    with torch.device("meta"):
        return KLVAE(config)
