"""Weights of a Hi-MAR bundle: which tensor of the checkpoint goes where, in which dtype and layout.

What depends on the phase or the time alone is computed here once: modulations, folded into the
norms' weights, mask tokens at their positions, and the time embeddings of all 1000 time steps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from export.tensors import add_linear
from export.weights import WeightsFile
from hmar.diffusion import BASE_STEPS
from hmar.diffusion_head import Denoiser
from hmar.himar import PHASES, HiMAR, Phase
from hmar.himar_layers import ScaleAwareBlock
from hmar.kl_vae import KLVAE

SIDES = ("encoder", "decoder")
LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
RES_LINEARS = {"ada": "adaLN_modulation.1", "fc1": "mlp.0", "fc2": "mlp.2"}
DIT_LINEARS = {"ada": "adaLN_modulation.1", **LINEARS}


def lay_out(weights: WeightsFile, model: HiMAR, vae: KLVAE, dtype: torch.dtype) -> None:
    """Reserves a place in the weights file for every tensor that the graphs use."""
    config = model.config
    D = config.embed_dim
    weights.add("cond_rows", dtype, (config.num_classes + 1, D), partial(cond_rows, model))
    for name in ("cond_proj", "cond_z_proj", "z_proj", "decoder_embed"):
        add_linear(weights, name, dtype, model.get_submodule(name))
    for name in ("z_proj_ln", "encoder_norm", "decoder_norm"):
        _add_norm(weights, name, dtype, model.get_submodule(name))
    for phase in PHASES:
        for name, rows in tables(model, phase).items():
            load = partial(_table, model, phase, name)
            weights.add(f"{phase}.{name}", dtype, tuple(rows.shape), load)
    for side in SIDES:
        for i, block in enumerate(getattr(model, f"{side}_blocks")):
            name = f"{side}_blocks.{i}"
            for ours, theirs in LINEARS.items():
                add_linear(weights, f"{name}.{ours}", dtype, block.get_submodule(theirs))
            for phase in PHASES:
                for part in folded(model, side, block, phase):
                    load = partial(_folded_part, model, side, block, phase, part)
                    weights.add(f"{name}.{phase}.{part}", dtype, (D,), load)
    _add_mlp_denoiser(weights, model, dtype)
    _add_dit_denoiser(weights, model, dtype)
    for name, parameter in vae.named_parameters():
        # tokens of given images are kept through an edit, so the encoder keeps full precision
        kept = torch.float32 if name.startswith(("encoder.", "quant_conv.")) else dtype
        weights.add(name, kept, tuple(parameter.shape), partial(vae.get_parameter, name))


def cond_rows(model: HiMAR) -> Tensor:
    """Class embeddings, then the row without a class."""
    rows = [model.class_emb.weight] if model.config.num_classes else []
    return torch.cat((*rows, model.fake_latent))


def tables(model: HiMAR, phase: Phase) -> dict[str, Tensor]:
    """What a phase adds to its rows, by position: only the rows that its graphs use."""
    config = model.config
    sizes = (config.buffer_size, config.num_pivots, config.num_dense)
    encoder, decoder, mask = (
        table[0].chunk(2)[PHASES.index(phase)]
        for table in (
            model.encoder_pos_embed_learned,
            model.decoder_pos_embed_learned,
            model.mask_token,
        )
    )
    encoder_buffer, encoder_pivots, encoder_dense = encoder.split(sizes)
    decoder_buffer, decoder_tokens = decoder.tensor_split((config.buffer_size,))
    z_pivots, z_dense = model.diffusion_pos_embed_learned[0].split(sizes[1:])
    rows = {
        "encoder_buffer": encoder_buffer,
        "encoder_pivots": encoder_pivots,
        "decoder_buffer": decoder_buffer,
        "decoder_tokens": decoder_tokens,
        "decoder_masked": mask + decoder_tokens,
        "z": z_pivots if phase == "pivot" else z_dense,
    }
    return rows if phase == "pivot" else {**rows, "encoder_dense": encoder_dense}


def _table(model: HiMAR, phase: Phase, name: str) -> Tensor:
    return tables(model, phase)[name]


def folded(model: HiMAR, side: str, block: ScaleAwareBlock, phase: Phase) -> dict[str, Tensor]:
    """Norms of a block with its scales multiplied in, and its gates, each (D,)."""
    ada = model.encoder_ada(phase) if side == "encoder" else model.decoder_ada(phase)
    modulation = block.modulation(ada, PHASES.index(phase)).flatten()
    scale1, gate1, scale2, gate2 = modulation.chunk(4)
    return {
        "norm1.weight": block.norm1.weight * (1 + scale1),
        "norm1.bias": block.norm1.bias * (1 + scale1),
        "gate1": gate1,
        "norm2.weight": block.norm2.weight * (1 + scale2),
        "norm2.bias": block.norm2.bias * (1 + scale2),
        "gate2": gate2,
    }


def _folded_part(
    model: HiMAR, side: str, block: ScaleAwareBlock, phase: Phase, part: str
) -> Tensor:
    return folded(model, side, block, phase)[part]


def _add_norm(weights: WeightsFile, name: str, dtype: torch.dtype, norm: nn.Module) -> None:
    for part, parameter in norm.named_parameters():
        load = partial(norm.get_parameter, part)
        weights.add(f"{name}.{part}", dtype, tuple(parameter.shape), load)


def _add_mlp_denoiser(weights: WeightsFile, model: HiMAR, dtype: torch.dtype) -> None:
    denoiser = model.pivot_denoiser
    add_linear(weights, "mlp.cond", dtype, denoiser.cond_embed)
    add_linear(weights, "mlp.input", dtype, denoiser.input_proj)
    for i, block in enumerate(denoiser.res_blocks):
        _add_norm(weights, f"mlp.blocks.{i}.norm", dtype, block.get_submodule("in_ln"))
        for ours, theirs in RES_LINEARS.items():
            add_linear(weights, f"mlp.blocks.{i}.{ours}", dtype, block.get_submodule(theirs))
    _add_ends(weights, "mlp", dtype, denoiser)


def _add_dit_denoiser(weights: WeightsFile, model: HiMAR, dtype: torch.dtype) -> None:
    denoiser, config = model.dense_denoiser, model.config
    _add_conv(weights, "dit.cond", dtype, denoiser.c_embedder.proj)
    _add_conv(weights, "dit.input", dtype, denoiser.x_embedder.proj)
    shape = (config.num_dense, config.dit_width)
    weights.add("dit.pos", dtype, shape, lambda: denoiser.pos_embed[0])
    for i, block in enumerate(denoiser.blocks):
        for ours, theirs in DIT_LINEARS.items():
            add_linear(weights, f"dit.blocks.{i}.{ours}", dtype, block.get_submodule(theirs))
    _add_ends(weights, "dit", dtype, denoiser)


def _add_ends(weights: WeightsFile, name: str, dtype: torch.dtype, denoiser: Denoiser) -> None:
    """The time table and the final layer."""
    final = denoiser.final_layer
    weights.add(
        f"{name}.time",
        dtype,
        (BASE_STEPS, final.linear.in_features),
        lambda: denoiser.time(torch.arange(BASE_STEPS))[:, 0],
    )
    add_linear(weights, f"{name}.final.ada", dtype, final.adaLN_modulation[1])
    add_linear(weights, f"{name}.final", torch.float32, final.linear)


def _add_conv(weights: WeightsFile, name: str, dtype: torch.dtype, conv: nn.Conv2d) -> None:
    """A 1x1 convolution as the linear layer that it is."""
    assert conv.bias is not None
    bias = conv.bias
    shape = (conv.in_channels, conv.out_channels)
    weights.add(f"{name}.weight", dtype, shape, lambda: conv.weight.flatten(1).T)
    weights.add(f"{name}.bias", dtype, shape[1:], lambda: bias)
