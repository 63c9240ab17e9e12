"""Checkpoint files to the model family that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.family import Family
from export.himar.family import HiMARFamily
from export.hmar_family import HMARFamily
from hmar.checkpoint import HMAR_KINDS, check_pair, hmar_from_states, load_tokenizer
from hmar.checkpoint_file import Kind, StateDict, read_checkpoints
from hmar.errors import CheckpointValueError
from hmar.himar_checkpoint import check_himar_pair, himar_from_state, load_kl_vae


def load_family(
    checkpoints: Sequence[Path],
    vae: Path,
    *,
    branch_layers: int | None = None,
    num_heads: Sequence[int] = (),
) -> Family:
    """A model with its autoencoder, recognised by the keys; arguments as in `export_bundle`.

    Raises:
        CheckpointError: a checkpoint cannot be used.
    """
    states = read_checkpoints(checkpoints, (*HMAR_KINDS, "Hi-MAR"))
    source = " + ".join(map(str, checkpoints))
    if "Hi-MAR" not in states:
        return _load_hmar(states, source, vae, branch_layers, num_heads)
    if len(states) > 1:
        raise CheckpointValueError(f"{source}: a Hi-MAR file needs no second checkpoint")
    if branch_layers is not None:
        raise ValueError("branch_layers is for stages of HMAR, and this is a Hi-MAR checkpoint")
    return _load_himar(states["Hi-MAR"], source, vae, num_heads)


def _load_hmar(
    states: dict[Kind, StateDict],
    source: str,
    vae: Path,
    branch_layers: int | None,
    num_heads: Sequence[int],
) -> HMARFamily:
    if len(num_heads) > 1:
        raise ValueError(f"num_heads must be one number for HMAR, got {list(num_heads)}")
    heads = num_heads[0] if num_heads else None
    model = hmar_from_states(states, source, branch_layers=branch_layers, num_heads=heads)
    tokenizer = load_tokenizer(vae, model.config.patch_nums)
    check_pair(model, tokenizer)
    return HMARFamily.of(model, tokenizer)


def _load_himar(
    state: StateDict, source: str, vae_path: Path, num_heads: Sequence[int]
) -> HiMARFamily:
    if len(num_heads) not in (0, 3):
        raise ValueError(
            "num_heads must be three numbers for Hi-MAR (encoder, decoder, dense denoiser), "
            f"got {list(num_heads)}"
        )
    encoder, decoder, dit = num_heads or (None, None, None)
    model = himar_from_state(
        state, source, encoder_heads=encoder, decoder_heads=decoder, dit_heads=dit
    )
    vae = load_kl_vae(vae_path)
    check_himar_pair(model, vae)
    return HiMARFamily.of(model, vae)
