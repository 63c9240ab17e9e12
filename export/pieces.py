"""Traced pieces of a model, each traced once and used by every graph that needs it.

Only sizes enter; no weight is read.
"""

from __future__ import annotations

import copy
from functools import cached_property, lru_cache

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export import modules
from export.passes import PIPELINE
from export.to_onnx import Examples, trace
from hmar.config import HMARConfig, TokenizerConfig
from hmar.vae import VQVAE
from plugins_trt.block_sparse_attn.spec import Attributes, Pattern

# Example sizes of symbolic dimensions; all differ, lest torch.export take two for the same.
N, LENGTH, PN, NEXT_PN = 2, 3, 5, 7


class _WithWeights(nn.Module):
    """Turns a module's parameters into inputs, named as the parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, operand: Tensor, weights: dict[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        return torch.func.functional_call(self.module, weights, (operand,))


class Pieces:
    """Graphs of the modules in `export.modules` for one model's sizes and precision."""

    def __init__(
        self, model: HMARConfig, tokenizer: TokenizerConfig, dtype: torch.dtype, opset: int
    ) -> None:
        self.model, self.tokenizer, self.dtype, self.opset = model, tokenizer, dtype, opset
        self.side = model.patch_nums[-1]
        self._quantizer = lru_cache(self._trace_quantizer)
        self.block = lru_cache(self._trace_block)

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype)

    def _f32(self, *shape: int) -> Tensor:
        return self._empty(*shape, dtype=torch.float32)

    def _int(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    def _trace(
        self, module: nn.Module, inputs: Examples, outputs: list[str], **dynamic: tuple[int, ...]
    ) -> ir.Graph:
        return run_passes(trace(module, inputs, outputs, dynamic, self.opset), self.opset)

    @cached_property
    def class_embedding(self) -> ir.Graph:
        inputs = {
            "label": self._int(N),
            "class_emb": self._empty(self.model.num_classes + 1, self.model.embed_dim),
        }
        return self._trace(modules.ClassEmbedding(), inputs, ["cond", "act"], label=(0,))

    @cached_property
    def modulation(self) -> ir.Graph:
        C = self.model.embed_dim
        inputs = {
            "act": self._empty(N, C),
            "weight": self._empty(C, 6 * C),
            "bias": self._empty(6 * C),
        }
        return self._trace(modules.Modulation(), inputs, ["ada"], act=(0,), weight=(1,), bias=(0,))

    @cached_property
    def shared_modulation(self) -> ir.Graph:
        C = self.model.embed_dim
        inputs = {"shared": self._empty(N, 1, 6 * C), "own": self._empty(1, 1, 6 * C)}
        return self._trace(modules.SharedModulation(), inputs, ["ada"], shared=(0,))

    @cached_property
    def embed_first(self) -> ir.Graph:
        C = self.model.embed_dim
        return self._trace(
            modules.EmbedFirst(),
            {"cond": self._empty(N, C), "pos": self._empty(1, C)},
            ["x"],
            cond=(0,),
        )

    @cached_property
    def embed_ns(self) -> ir.Graph:
        C, Cvae = self.model.embed_dim, self.model.latent_channels
        inputs = {
            "x_f32": self._f32(N, LENGTH, Cvae),
            "word_embed": self._empty(Cvae, C),
            "pos": self._empty(LENGTH, C),
        }
        return self._trace(modules.EmbedNs(), inputs, ["x"], x_f32=(0, 1), pos=(0,))

    @cached_property
    def embed_mask(self) -> ir.Graph:
        C, Cvae = self.model.embed_dim, self.model.latent_channels
        inputs = {
            "x_f32": self._f32(N, LENGTH, Cvae),
            "h_f32": self._f32(N, LENGTH, Cvae),
            "token_mask": torch.zeros(N, LENGTH, dtype=torch.bool),
            "word_embed": self._empty(Cvae, C),
            "mask_embed": self._empty(C),
            "pos": self._empty(LENGTH, C),
        }
        return self._trace(
            modules.EmbedMask(),
            inputs,
            ["x"],
            x_f32=(0, 1),
            h_f32=(0, 1),
            token_mask=(0, 1),
            pos=(0,),
        )

    def _trace_block(self, pattern: Pattern) -> ir.Graph:
        """A transformer block whose attention follows a pattern."""
        C, hidden, heads = self.model.embed_dim, self.model.mlp_dim, self.model.num_heads
        l2_norm = self.model.attn_l2_norm
        attributes = Attributes(sm_scale=self.model.attn_scale, pattern=pattern, qk_l2_norm=l2_norm)
        inputs = {
            "x": self._empty(N, LENGTH, C),
            "ada": self._empty(N, 1, 6 * C),
            "cu_seqlens": self._int(4),
            "scale_mul": self._f32(heads) if l2_norm else None,
            "qkv_weight": self._empty(C, 3 * C),
            "qkv_bias": self._empty(3 * C),
            "proj_weight": self._empty(C, C),
            "proj_bias": self._empty(C),
            "fc1_weight": self._empty(C, hidden),
            "fc1_bias": self._empty(hidden),
            "fc2_weight": self._empty(hidden, C),
            "fc2_bias": self._empty(C),
        }
        block = modules.Block(heads, self.model.head_dim, attributes, self.model.norm_eps)
        return self._trace(block, inputs, ["y"], x=(0, 1), ada=(0,), cu_seqlens=(0,))

    @cached_property
    def head(self) -> ir.Graph:
        C, V = self.model.embed_dim, self.model.vocab_size
        inputs = {
            "x": self._empty(N, LENGTH, C),
            "ada": self._empty(N, 1, 2 * C),
            "weight_f32": self._f32(C, V),
            "bias_f32": self._f32(V),
        }
        return self._trace(
            modules.Head(self.model.norm_eps), inputs, ["logits"], x=(0, 1), ada=(0,)
        )

    @cached_property
    def log_prob(self) -> ir.Graph:
        inputs = {
            "logits": self._f32(N, LENGTH, self.model.vocab_size),
            "tokens": self._int(N, LENGTH),
        }
        return self._trace(modules.LogProb(), inputs, ["log_prob"], logits=(0, 1), tokens=(0, 1))

    def quantize(self, is_last_scale: bool) -> ir.Graph:
        return self._quantizer(modules.Quantize, is_last_scale)

    def mask_input(self, is_last_scale: bool) -> ir.Graph:
        return self._quantizer(modules.MaskInput, is_last_scale)

    def quantize_rest(self, is_last_scale: bool) -> ir.Graph:
        return self._quantizer(modules.QuantizeRest, is_last_scale)

    def _trace_quantizer(self, module: type[nn.Module], is_last_scale: bool) -> ir.Graph:
        """A module between scale grids; at the last scale nothing is enlarged or reduced."""
        P, Cvae, V = self.side, self.model.latent_channels, self.model.vocab_size
        pn = P if is_last_scale else PN
        latent = {"f_hat": self._f32(N, Cvae, P, P)}
        operands: dict[type[nn.Module], Examples] = {
            modules.Quantize: {"tokens": self._int(N, pn, pn), **latent},
            modules.MaskInput: {"tokens": self._int(N, pn, pn)},
            modules.QuantizeRest: {
                "rest": self._f32(N, Cvae, P, P),
                **latent,
                "codebook_norm": self._f32(V),
            },
        }
        outputs = {
            modules.Quantize: ["f_hat_out"] + ([] if is_last_scale else ["map"]),
            modules.MaskInput: ["h"],
            modules.QuantizeRest: ["tokens", "rest_out", "f_hat_out"],
        }
        reduced = NEXT_PN if module is modules.Quantize else pn
        inputs = {
            **operands[module],
            "codebook": self._f32(V, Cvae),
            "phi_weight": self._f32(Cvae, Cvae, 3, 3),
            "phi_bias": self._f32(Cvae),
            "up": None if is_last_scale else self._f32(P, pn),
            "down": None if is_last_scale else self._f32(reduced, P),
        }
        free = (0,) if is_last_scale else (0, 1, 2)
        dynamic = {"tokens": free, "f_hat": (0,), "rest": (0,), "up": (1,), "down": (0,)}
        ratio = self.tokenizer.phi_ratio
        return self._trace(
            module(ratio),
            inputs,
            outputs[module],
            **{n: d for n, d in dynamic.items() if n in inputs},
        )


@lru_cache(maxsize=4)
def pieces_for(
    model: HMARConfig, tokenizer: TokenizerConfig, dtype: torch.dtype, opset: int
) -> Pieces:
    """Pieces of a model, kept for further exports of models of the same sizes."""
    return Pieces(model, tokenizer, dtype, opset)


@lru_cache(maxsize=4)
def trace_decoder(config: TokenizerConfig, side: int, dtype: torch.dtype, opset: int) -> ir.Graph:
    """Graph of `modules.Decode`; the weights are inputs, named as in the tokenizer."""
    vae = _shapes_only(config)
    module = modules.Decode(blank(vae.decoder, dtype), blank(vae.post_quant_conv, dtype), dtype)
    operand = torch.empty(N, config.latent_channels, side, side)
    return trace_network(module, operand, ["image"], opset)


@lru_cache(maxsize=4)
def trace_encoder(config: TokenizerConfig, side: int, opset: int) -> ir.Graph:
    """Graph of `modules.Latent`; the weights are inputs, named as in the tokenizer."""
    vae, side_px = _shapes_only(config), side * config.downsampling
    module = modules.Latent(blank(vae.encoder, torch.float32), blank(vae.quant_conv, torch.float32))
    return trace_network(module, torch.empty(N, 3, side_px, side_px), ["latent"], opset)


def trace_network(module: nn.Module, operand: Tensor, outputs: list[str], opset: int) -> ir.Graph:
    """Graph of a module of one `operand`; its weights are inputs, named as its parameters."""
    inputs: Examples = {"operand": operand, "weights": dict(module.named_parameters())}
    return run_passes(trace(_WithWeights(module), inputs, outputs, {"operand": (0,)}, opset), opset)


def _shapes_only(config: TokenizerConfig) -> VQVAE:
    with torch.device("meta"):
        return VQVAE(config, (1, 2))


def run_passes(graph: ir.Graph, opset: int) -> ir.Graph:
    """The graph after all rewrites of the pipeline."""
    model = ir.Model(graph, ir_version=10)
    graph.opset_imports.setdefault("", opset)
    for rewrite in PIPELINE:
        rewrite(model)
    return model.graph


def blank(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same module with uninitialised parameters of a dtype."""
    memo = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=dtype), requires_grad=False)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)
