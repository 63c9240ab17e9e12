"""Weights of the bundle: which tensor of the checkpoint goes where, in which dtype and layout.

Linear weights are stored (in, out), as ONNX MatMul takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from export.weights import WeightsFile
from hmar.hmar import HMAR
from hmar.layers import Block
from hmar.vae import VQVAE

BLOCK_LINEARS = {
    "proj": "attn.proj",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
}


def lay_out(weights: WeightsFile, model: HMAR, tokenizer: VQVAE, dtype: torch.dtype) -> None:
    """Reserves a place in the weights file for every tensor that the graphs use."""
    C = model.config.embed_dim
    weights.add(
        "class_emb", dtype, tuple(model.class_emb.weight.shape), lambda: model.class_emb.weight
    )
    weights.add("pos", dtype, (model.config.seq_len, C), lambda: positions(model))
    add_linear(weights, "word_embed", dtype, model.word_embed, bias=False)
    if model.config.shared_aln:
        add_linear(weights, "shared_ada", dtype, model.shared_ada_lin[1])
    for name, block in named_blocks(model):
        _add_block(weights, name, dtype, block)
    for branch in ("ns", "mask") if model.config.has_mask_branch else ("ns",):
        add_linear(weights, f"{branch}_head", torch.float32, getattr(model, f"{branch}_head"))
        add_linear(
            weights, f"{branch}_head.ada", dtype, getattr(model, f"{branch}_head_nm").ada_lin[1]
        )
    if model.config.has_mask_branch:
        weights.add("mask_embed", dtype, (C,), lambda: model.mask_embed.weight[0])
    _add_tokenizer(weights, tokenizer, dtype)


def named_blocks(model: HMAR) -> Iterator[tuple[str, Block]]:
    """All transformer blocks with their names."""
    groups = ["base_blocks", "ns_blocks"] + (
        ["mask_blocks"] if model.config.has_mask_branch else []
    )
    for group in groups:
        for i, block in enumerate(getattr(model, group)):
            yield f"{group}.{i}", block


def positions(model: HMAR) -> Tensor:
    """Everything that is added to an embedded token, (L, C): scale, position and the word bias.

    Row 0 belongs to scale 0, whose input is the class embedding: it holds `pos_start`, not the word
    bias.
    """
    pos = model.lvl_pos() + model.word_embed_bias
    pos[0] = model.pos_start[0, 0] + model.lvl_pos()[0]
    return pos


def area_matrix(side: int, reduced: int) -> np.ndarray:
    """Area average of a side to a smaller one, (reduced, side) float32.

    Cell i averages positions floor(i * side / reduced) to ceil((i + 1) * side / reduced) - 1.
    """
    matrix = np.zeros((reduced, side))
    for i in range(reduced):
        start, stop = i * side // reduced, -(-(i + 1) * side // reduced)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix.astype(np.float32)


def bicubic_matrix(side: int, source: int) -> np.ndarray:
    """Bicubic enlargement of a side, (side, source) float32.

    Convolution kernel with a = -0.75 (Keys 1981), half-pixel centres, edges clamped, no
    antialiasing.
    """
    a = -0.75

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = np.zeros((side, source))
    for i in range(side):
        centre = (i + 0.5) * source / side - 0.5
        first = int(np.floor(centre)) - 1
        for tap in range(first, first + 4):
            matrix[i, min(max(tap, 0), source - 1)] += kernel(centre - tap)
    return matrix.astype(np.float32)


def add_linear(
    weights: WeightsFile, name: str, dtype: torch.dtype, linear: torch.nn.Module, bias: bool = True
) -> None:
    """Reserves places for a linear layer, its weight as (in, out)."""
    assert isinstance(linear, torch.nn.Linear)
    weights.add(
        f"{name}.weight", dtype, (linear.in_features, linear.out_features), lambda: linear.weight.T
    )
    if bias:
        weights.add(f"{name}.bias", dtype, (linear.out_features,), lambda: linear.bias)


def _add_block(weights: WeightsFile, name: str, dtype: torch.dtype, block: Block) -> None:
    C = block.attn.mat_qkv.in_features
    add_linear(weights, f"{name}.qkv", dtype, block.attn.mat_qkv, bias=False)
    weights.add(f"{name}.qkv.bias", dtype, (3 * C,), block.attn.qkv_bias)
    if block.attn.l2_norm:
        weights.add(
            f"{name}.scale_mul", torch.float32, (block.attn.num_heads,), block.attn.scale_mul
        )
    for ours, theirs in BLOCK_LINEARS.items():
        add_linear(weights, f"{name}.{ours}", dtype, block.get_submodule(theirs))
    if hasattr(block, "ada_lin"):
        add_linear(weights, f"{name}.ada", dtype, block.ada_lin[1])
    else:
        weights.add(f"{name}.ada.own", dtype, (1, 1, 6 * C), lambda: block.ada_gss.flatten(2))


def _add_tokenizer(weights: WeightsFile, tokenizer: VQVAE, dtype: torch.dtype) -> None:
    quant, f32 = tokenizer.quantize, torch.float32
    V, Cvae = quant.embedding.weight.shape
    weights.add("codebook", f32, (V, Cvae), lambda: quant.embedding.weight)
    weights.add("codebook.norm", f32, (V,), lambda: quant.embedding.weight.square().sum(1))
    for j, conv in enumerate(quant.quant_resi.qresi_ls):
        phi = f"phi.{j}"
        weights.add(f"{phi}.weight", f32, (Cvae, Cvae, 3, 3), partial(conv.get_parameter, "weight"))
        weights.add(f"{phi}.bias", f32, (Cvae,), partial(conv.get_parameter, "bias"))
    for name, parameter in tokenizer.named_parameters():
        if not name.startswith("quantize."):
            # an image's tokens are exact decisions, so the encoder keeps full precision
            kept = f32 if name.startswith(("encoder.", "quant_conv.")) else dtype
            load = partial(tokenizer.get_parameter, name)
            weights.add(name, kept, tuple(parameter.shape), load)
