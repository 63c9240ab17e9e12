"""Published HMAR checkpoints to models: understood from keys and shapes, checked strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hmar.checkpoint_file import (
    Kind,
    StateDict,
    count_modules,
    read_checkpoint,
    read_checkpoints,
)
from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512, HMARConfig, TokenizerConfig
from hmar.errors import CheckpointKeyError, CheckpointValueError
from hmar.hmar import HMAR
from hmar.stages import merge_stages
from hmar.strict_loading import build, require
from hmar.vae import VQVAE

HMAR_KINDS: tuple[Kind, ...] = ("HMAR", "next-scale stage", "masked stage")


def load_hmar(
    paths: Sequence[Path], *, branch_layers: int | None = None, num_heads: int | None = None
) -> HMAR:
    """The transformer in a checkpoint, float32 on the CPU, in eval mode.

    Args:
        paths: a merged HMAR file; or a next-scale stage file; or the next-scale and the masked
            stage files, in any order, which are merged.
        branch_layers: blocks per branch of stage files. By default the leading blocks that both
            stages share tell; where they share none, 8 as in all published models, or half the
            depth if less.
        num_heads: only for models without q/k L2 norm, whose keys do not tell; default width / 64.

    Raises:
        CheckpointReadError: a file is damaged, unsafe or not a checkpoint of the kind wanted.
        CheckpointKeyError: keys are missing, unexpected or misshapen.
        CheckpointValueError: weights are not finite or the files do not belong together.
    """
    states = read_checkpoints(paths, HMAR_KINDS)
    return hmar_from_states(
        states, " + ".join(map(str, paths)), branch_layers=branch_layers, num_heads=num_heads
    )


def hmar_from_states(
    states: Mapping[Kind, StateDict],
    source: str,
    *,
    branch_layers: int | None = None,
    num_heads: int | None = None,
) -> HMAR:
    """The transformer in state dicts of some of `HMAR_KINDS`; see `load_hmar`.

    Args:
        source: file names for messages.
    """
    if "HMAR" in states:
        if len(states) > 1:
            raise CheckpointValueError(f"{source}: a merged HMAR file needs no second checkpoint")
        state = states["HMAR"]
    elif "next-scale stage" in states:
        state = merge_stages(
            states["next-scale stage"], states.get("masked stage"), branch_layers, source
        )
    else:
        raise CheckpointValueError(
            f"{source}: a masked stage alone cannot generate; add the next-scale stage file"
        )
    config = infer_hmar_config(state, source, num_heads)
    model = build(lambda: HMAR(config), state, source, derived_shapes=_derived_hmar(config))
    _check_key_bias(state, source)
    return model


def load_tokenizer(path: Path, patch_nums: Sequence[int]) -> VQVAE:
    """The tokenizer in a checkpoint, float32 on the CPU, in eval mode.

    Args:
        path: the tokenizer file.
        patch_nums: side of the token map at every scale, from the transformer.

    Raises:
        CheckpointReadError, CheckpointKeyError, CheckpointValueError: as in `load_hmar`.
    """
    _, state = read_checkpoint(path, ("tokenizer",))
    config = infer_tokenizer_config(state, str(path))
    derived = {"quantize.ema_vocab_hit_SV": (len(patch_nums), config.vocab_size)}
    return build(lambda: VQVAE(config, patch_nums), state, str(path), derived_shapes=derived)


def check_pair(model: HMAR, tokenizer: VQVAE) -> None:
    """Raises CheckpointValueError unless the tokenizer's codebook fits the transformer."""
    for what, ours, theirs in (
        ("vocabulary size", model.config.vocab_size, tokenizer.config.vocab_size),
        ("latent channels", model.config.latent_channels, tokenizer.config.latent_channels),
    ):
        if ours != theirs:
            raise CheckpointValueError(
                f"wrong tokenizer: its {what} is {theirs}, the transformer was trained with "
                f"{ours}; pass the tokenizer file that was published with this checkpoint"
            )


# --- sizes from keys and shapes -----------------------------------------------------------------


def infer_hmar_config(state: StateDict, source: str, num_heads: int | None = None) -> HMARConfig:
    """Sizes of a merged HMAR from its keys and shapes."""
    require(
        state,
        ("class_emb.weight", "pos_1LC", "lvl_embed.weight", "word_embed.weight", "ns_head.weight"),
        source,
    )
    classes, width = state["class_emb.weight"].shape
    branch_layers = count_modules(state, "ns_blocks")
    scale_mul = next((t for n, t in state.items() if n.endswith("attn.scale_mul_1H11")), None)
    if num_heads is None:
        num_heads = width // 64 if scale_mul is None else scale_mul.numel()
    fc1 = next((t for n, t in state.items() if n.endswith("ffn.fc1.weight")), None)
    try:
        return HMARConfig(
            depth=count_modules(state, "base_blocks") + branch_layers,
            branch_layers=branch_layers,
            embed_dim=width,
            num_heads=num_heads,
            patch_nums=_infer_patch_nums(state, source),
            num_classes=classes - 1,
            vocab_size=state["ns_head.weight"].shape[0],
            latent_channels=state["word_embed.weight"].shape[1],
            shared_aln="shared_ada_lin.1.weight" in state,
            attn_l2_norm=scale_mul is not None,
            has_mask_branch=any(n.startswith("mask_") for n in state),
            mlp_ratio=4.0 if fc1 is None else fc1.shape[0] / width,
        )
    except ValueError as error:
        raise CheckpointValueError(f"{source}: inconsistent sizes ({error})") from error


def _infer_patch_nums(state: StateDict, source: str) -> tuple[int, ...]:
    seq_len = state["pos_1LC"].shape[1]
    if "lvl_1L" in state:
        counts = torch.bincount(state["lvl_1L"].flatten().long()).tolist()
        patch_nums = tuple(round(c**0.5) for c in counts)
        if [pn * pn for pn in patch_nums] != counts or sum(counts) != seq_len:
            raise CheckpointValueError(
                f"{source}: lvl_1L holds scales of {counts} tokens, for {seq_len} positions"
            )
        return patch_nums
    for patch_nums in (PATCH_NUMS_256, PATCH_NUMS_512):
        if sum(pn * pn for pn in patch_nums) == seq_len:
            return patch_nums
    raise CheckpointKeyError(
        f"{source}: {seq_len} positions fit no published list of scales, "
        "and the key lvl_1L that tells is missing",
        missing=("lvl_1L",),
    )


def infer_tokenizer_config(state: StateDict, source: str) -> TokenizerConfig:
    """Sizes of the tokenizer from its keys and shapes."""
    levels = count_modules(state, "encoder.down")
    firsts = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(levels)]
    require(state, ("encoder.conv_in.weight", "quantize.embedding.weight", *firsts), source)
    base = state["encoder.conv_in.weight"].shape[0]
    vocab, latent = state["quantize.embedding.weight"].shape
    return TokenizerConfig(
        vocab_size=vocab,
        latent_channels=latent,
        base_channels=base,
        channel_mult=tuple(state[name].shape[0] // base for name in firsts),
        num_res_blocks=count_modules(state, "encoder.down.0.block"),
        num_phi=count_modules(state, "quantize.quant_resi.qresi_ls"),
    )


def _derived_hmar(config: HMARConfig) -> dict[str, tuple[int, ...]]:
    L = config.seq_len
    blocks = [("base_blocks", config.base_layers), ("ns_blocks", config.branch_layers)]
    if config.has_mask_branch:
        blocks.append(("mask_blocks", config.branch_layers))
    shapes: dict[str, tuple[int, ...]] = {"lvl_1L": (1, L), "attn_bias_for_masking": (1, 1, L, L)}
    shapes |= {
        f"{g}.{i}.attn.zero_k_bias": (config.embed_dim,) for g, n in blocks for i in range(n)
    }
    return shapes


def _check_key_bias(state: StateDict, source: str) -> None:
    for name, tensor in state.items():
        if name.endswith("zero_k_bias") and tensor.any():
            raise CheckpointValueError(
                f"{source}: {name} must be zero; models with a key bias are not supported"
            )
