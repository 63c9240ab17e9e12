"""Published Hi-MAR checkpoints to models: understood from keys and shapes, checked strictly."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from torch import Tensor

from hmar.checkpoint_file import StateDict, count_modules, read_checkpoint
from hmar.config import HIMAR_PRESETS, HiMARConfig, KLVAEConfig
from hmar.errors import CheckpointValueError
from hmar.himar import HiMAR
from hmar.kl_vae import KLVAE
from hmar.strict_loading import build, require

logger = logging.getLogger(__name__)

HEAD_DIM = 64  # of heads that no published model tells
TRAINING_ONLY = "loss."  # discriminator and the like in an autoencoder's training state


def load_himar(
    path: Path,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    dit_heads: int | None = None,
) -> HiMAR:
    """The transformer with its denoisers in a checkpoint, float32 on the CPU, in eval mode.

    Running averages (`model_ema`) are taken where the file has them. A file without a class
    embedding gives a model that is conditioned by vectors.

    Args:
        encoder_heads, decoder_heads, dit_heads: attention heads, which the keys do not tell;
            default those of the published model of this width, else width / 64.

    Raises:
        CheckpointReadError: the file is damaged, unsafe or not a Hi-MAR checkpoint.
        CheckpointKeyError: keys are missing, unexpected or misshapen.
        CheckpointValueError: weights are not finite or sizes do not fit together.
    """
    _, state = read_checkpoint(path, ("Hi-MAR",))
    return himar_from_state(
        state,
        str(path),
        encoder_heads=encoder_heads,
        decoder_heads=decoder_heads,
        dit_heads=dit_heads,
    )


def himar_from_state(
    state: StateDict,
    source: str,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    dit_heads: int | None = None,
) -> HiMAR:
    """The transformer in a state dict; see `load_himar`.

    Args:
        source: file name for messages.
    """
    config = infer_himar_config(
        state,
        source,
        encoder_heads=encoder_heads,
        decoder_heads=decoder_heads,
        dit_heads=dit_heads,
    )
    unused = {
        "cond_tokens": (1, config.num_pivots, config.token_channels),
        "cond_diffloss.net.c_pos_embed": (1, config.num_dense, config.dit_width),
    }
    return build(lambda: HiMAR(config), state, source, derived_shapes=unused)


def load_kl_vae(path: Path) -> KLVAE:
    """The autoencoder in a checkpoint, float32 on the CPU, in eval mode.

    Raises:
        CheckpointReadError, CheckpointKeyError, CheckpointValueError: as in `load_himar`.
    """
    _, state = read_checkpoint(path, ("KL autoencoder",))
    state = {name: t for name, t in state.items() if not name.startswith(TRAINING_ONLY)}
    config = infer_kl_vae_config(state, str(path))
    return build(lambda: KLVAE(config), state, str(path), derived_shapes={})


def check_himar_pair(model: HiMAR, vae: KLVAE) -> None:
    """Raises CheckpointValueError unless the autoencoder's latents are the transformer's tokens."""
    ours, theirs = model.config.token_channels, vae.config.latent_channels
    if ours != theirs:
        raise CheckpointValueError(
            f"wrong autoencoder: its latents have {theirs} channels, the transformer was trained "
            f"with {ours}; pass the autoencoder file that was published with this checkpoint"
        )


def infer_himar_config(
    state: StateDict,
    source: str,
    *,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    dit_heads: int | None = None,
) -> HiMARConfig:
    """Sizes of Hi-MAR from its keys and shapes; heads as in `load_himar`."""
    names = (
        "mask_token",
        "encoder_pos_embed_learned",
        "z_proj.weight",
        "encoder_blocks.0.mlp.fc1.weight",
        "diffloss.net.input_proj.weight",
        "cond_diffloss.net.pos_embed",
        "cond_diffloss.net.blocks.0.mlp.fc1.weight",
    )
    require(state, names, source)
    try:
        mask_token, pos_embed, z_proj, fc1, input_proj, dit_pos_embed, dit_fc1 = (
            state[name] for name in names
        )
        width, channels = z_proj.shape
        _, num_dense, dit_width = dit_pos_embed.shape
        num_tokens = _half(mask_token)
        return HiMARConfig(
            embed_dim=width,
            encoder_depth=count_modules(state, "encoder_blocks"),
            decoder_depth=count_modules(state, "decoder_blocks"),
            encoder_heads=encoder_heads or _published_heads(width),
            decoder_heads=decoder_heads or _published_heads(width),
            mlp_depth=count_modules(state, "diffloss.net.res_blocks"),
            mlp_width=input_proj.shape[0],
            dit_depth=count_modules(state, "cond_diffloss.net.blocks"),
            dit_width=dit_width,
            dit_heads=dit_heads or max(1, dit_width // HEAD_DIM),
            pivot_side=_side(num_tokens - num_dense, "pivots"),
            dense_side=_side(num_dense, "dense tokens"),
            token_channels=channels,
            buffer_size=_half(pos_embed) - num_tokens,
            num_classes=len(state["class_emb.weight"]) if "class_emb.weight" in state else 0,
            mlp_ratio=fc1.shape[0] / width,
            dit_mlp_ratio=dit_fc1.shape[0] / dit_width,
        )
    except (ValueError, IndexError) as error:
        raise CheckpointValueError(f"{source}: inconsistent sizes ({error})") from error


def _published_heads(width: int) -> int:
    for preset in HIMAR_PRESETS.values():
        if preset.embed_dim == width:
            return preset.encoder_heads
    logger.warning(
        "no published model has width %d and the keys do not tell the attention heads: "
        "taking heads of %d channels",
        width,
        HEAD_DIM,
    )
    return max(1, width // HEAD_DIM)


def _half(table_1XD: Tensor) -> int:
    """Rows per phase of a table for both."""
    return table_1XD.shape[1] // 2


def _side(count: int, what: str) -> int:
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise ValueError(f"{count} {what} are no square grid")
    return side


def infer_kl_vae_config(state: StateDict, source: str) -> KLVAEConfig:
    """Sizes of the autoencoder from its keys and shapes."""
    levels = count_modules(state, "encoder.down")
    firsts = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(max(levels, 1))]
    require(state, ("encoder.conv_in.weight", "post_quant_conv.weight", *firsts), source)
    base = state["encoder.conv_in.weight"].shape[0]
    return KLVAEConfig(
        latent_channels=state["post_quant_conv.weight"].shape[0],
        base_channels=base,
        channel_mult=tuple(state[name].shape[0] // base for name in firsts),
        num_res_blocks=count_modules(state, "encoder.down.0.block"),
    )
