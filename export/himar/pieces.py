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

WIDTH, OTHER_WIDTH = 5, 7  # example sizes of widths that stay symbolic; see `export.pieces`


class Pieces:
    """Graphs of the modules in `export.himar.modules` for one model's sizes and precision."""

    def __init__(
        self, model: HiMARConfig, vae: KLVAEConfig, dtype: torch.dtype, opset: int
    ) -> None:
        self.model, self.vae, self.dtype, self.opset = model, vae, dtype, opset
        self.block = lru_cache(self._trace_block)

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
    def embed_buffer(self) -> ir.Graph:
        D = self.model.embed_dim
        inputs = {"cond": self._empty(N, D), "pos": self._empty(self.model.buffer_size, D)}
        return self._trace(modules.EmbedBuffer(), inputs, ["x"], cond=(0,))

    @cached_property
    def embed_tokens(self) -> ir.Graph:
        D = self.model.embed_dim
        inputs = {
            "x": torch.empty(N, LENGTH, WIDTH),
            "weight": self._empty(WIDTH, D),
            "bias": self._empty(D),
            "pos": self._empty(N, LENGTH, D),
        }
        dynamic = {"x": (0, 1, 2), "weight": (0,), "pos": (0, 1)}
        return self._trace(modules.EmbedTokens(), inputs, ["y"], **dynamic)

    @cached_property
    def linear(self) -> ir.Graph:
        inputs = {
            "x": torch.empty(N, LENGTH, WIDTH),
            "weight": self._empty(WIDTH, OTHER_WIDTH),
            "bias": self._empty(OTHER_WIDTH),
        }
        dynamic = {"x": (0, 1, 2), "weight": (0, 1), "bias": (0,)}
        return self._trace(modules.Linear(), inputs, ["y"], **dynamic)

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
    def decoder_input(self) -> ir.Graph:
        D, S = self.model.embed_dim, self.model.num_tokens
        inputs = {
            "rows": self._empty(N, S, D),
            "source": torch.zeros(N, S, dtype=torch.int32),
            "masked": self._empty(S, D),
            "pos": self._empty(S, D),
        }
        return self._trace(modules.DecoderInput(), inputs, ["x"], rows=(0,), source=(0,))

    @cached_property
    def activation(self) -> ir.Graph:
        inputs = {"time": self._empty(1, WIDTH), "cond": self._empty(N, LENGTH, WIDTH)}
        return self._trace(modules.Activation(), inputs, ["act"], time=(1,), cond=(0, 1, 2))

    @cached_property
    def res_block(self) -> ir.Graph:
        W = self.model.mlp_width
        inputs = {
            "x": self._empty(N, LENGTH, W),
            "act": self._empty(N, LENGTH, W),
            "norm_weight": self._empty(W),
            "norm_bias": self._empty(W),
            **self._linear("ada", W, 3 * W),
            **self._mlp(W, W),
        }
        module = modules.ResBlock(self.model.norm_eps)
        return self._trace(module, inputs, ["y"], x=(0, 1), act=(0, 1))

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

    def final(self, width: int, out_channels: int) -> ir.Graph:
        """The last layer of a denoiser."""
        inputs = {
            "x": self._empty(N, LENGTH, width),
            "act": self._empty(N, LENGTH, width),
            **self._linear("ada", width, 2 * width),
            "weight_f32": torch.empty(width, out_channels),
            "bias_f32": torch.empty(out_channels),
        }
        module = modules.FinalLayer(self.model.norm_eps)
        return self._trace(module, inputs, ["out"], x=(0, 1), act=(0, 1))

    def guide(self, has_variance: bool) -> ir.Graph:
        """Guided noise of both halves' outputs."""
        C = self.model.token_channels
        out = torch.empty(N, LENGTH, 2 * C if has_variance else C)
        inputs = {"cond": out, "uncond": out.clone(), "scale": torch.empty(1)}
        outputs = ["noise", "variance"] if has_variance else ["noise"]
        return self._trace(modules.Guide(C), inputs, outputs, cond=(0, 1), uncond=(0, 1))

    def decode(self) -> ir.Graph:
        """The weights are inputs, named as in the autoencoder."""
        with torch.device("meta"):
            vae = KLVAE(self.vae)
        decoder, conv = (blank(m, self.dtype) for m in (vae.decoder, vae.post_quant_conv))
        side = self.model.dense_side
        module = modules.Decode(decoder, conv, self.vae.latent_scale, side, self.dtype)
        operand = torch.empty(N, side * side, self.vae.latent_channels)
        return trace_network(module, operand, "image", self.opset)
