"""Checkpoint files to state dicts: nothing in them is executed, and damage is noticed."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hmar.errors import CheckpointReadError, CheckpointValueError

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
Kind = Literal["HMAR", "next-scale stage", "masked stage", "tokenizer", "Hi-MAR", "KL autoencoder"]

PREFIXES = ("module.", "_orig_mod.", "model.")
EMA_ENTRY = "model_ema"  # running averages of the weights; where there are some, they are meant
LISTED = 3  # state dicts of a file named in an error
BELONGS = {
    "HMAR": "an HMAR transformer goes with a tokenizer (VQVAE)",
    "tokenizer": "a tokenizer (VQVAE) goes with an HMAR transformer",
    "Hi-MAR": "a Hi-MAR transformer goes with a KL autoencoder",
    "KL autoencoder": "a KL autoencoder goes with a Hi-MAR transformer",
}


def read_checkpoint(path: Path, wanted: Sequence[Kind]) -> tuple[Kind, StateDict]:
    """Kind and tensors of the state dict of a wanted kind in a `.pth` or `.safetensors` file.

    Of several the one in `model_ema` is taken, else the outermost, first one. Nothing in the file
    is executed, and `.pth` archives are checked against their checksums.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointReadError(f"{path}: no such file")
    _check_sidecar(path)
    found, hint = [], ""
    entries = sorted(_state_dicts(_read(path)), key=lambda e: e[0].split(".")[-1] != EMA_ENTRY)
    for label, state in entries:
        state = _strip_prefixes(state)
        kind = _kind(state)
        if kind in wanted:
            logger.info(
                "%s: %s%s, %d tensors",
                path.name,
                kind,
                f" under {label!r}" if label else "",
                len(state),
            )
            return kind, state
        found.append(
            f"{kind or 'an unknown layout'} ({len(state)} tensors, e.g. {next(iter(state))!r})"
        )
        if kind in BELONGS:
            hint = f"; {BELONGS[kind]}"
    expected = " or ".join(wanted)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    raise CheckpointReadError(
        f"{path}: expected a checkpoint of kind {expected}, "
        f"found {', '.join(found[:LISTED]) or 'no tensors'}{more}{hint}"
    )


def read_checkpoints(paths: Sequence[Path], wanted: Sequence[Kind]) -> dict[Kind, StateDict]:
    """State dicts of one file or of a pair, by kind; see `read_checkpoint`.

    Raises:
        CheckpointValueError: both files are of one kind.
    """
    if not 1 <= len(paths) <= 2:
        raise ValueError(
            f"expected one checkpoint or a pair of stage checkpoints, got {len(paths)} files"
        )
    states: dict[Kind, StateDict] = {}
    for path in paths:
        kind, state = read_checkpoint(path, wanted)
        if kind in states:
            raise CheckpointValueError(
                f"{path}: a second {kind} file; a pair is one next-scale and one masked stage"
            )
        states[kind] = state
    return states


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise CheckpointReadError(
                f"{path}: damaged or not a safetensors file ({error}); download it again"
            ) from error
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_archive(path)
    try:
        # Hi-MAR's files hold the arguments of their training: a bag of attributes, without code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointReadError(
            f"{path}: refused, since loading it would run code or it is not a checkpoint "
            f"({str(error).splitlines()[0]}); "
            "a checkpoint must hold tensors and plain containers only"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointReadError(
            f"{path}: damaged or not a checkpoint ({error}); download it again"
        ) from error


def _check_sidecar(path: Path) -> None:
    """Compares a file with the `FILE.sha256` beside it, in sha256sum's format, if there is one."""
    sidecar = path.with_name(f"{path.name}.sha256")
    if not sidecar.is_file():
        return
    expected = sidecar.read_text(encoding="utf-8", errors="replace").split()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not expected or expected[0].lower() != digest:
        raise CheckpointReadError(
            f"{path}: sha256 is {digest}, {sidecar.name} says {expected[:1]}; download it again"
        )


def _check_archive(path: Path) -> None:
    """Compares every record of a zip archive with its CRC-32; torch.load does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointReadError(
            f"{path}: damaged archive ({error}); download it again"
        ) from error
    if damaged is not None:
        raise CheckpointReadError(
            f"{path}: checksum mismatch in record {damaged!r}; download it again"
        )


def _state_dicts(obj: object, label: str = "") -> Iterator[tuple[str, StateDict]]:
    """Every dict of tensors in a nest of dicts, outermost first."""
    if not isinstance(obj, Mapping):
        return
    tensors = {str(k): v for k, v in obj.items() if isinstance(v, Tensor)}
    if tensors:
        yield label, tensors
    for key, value in obj.items():
        yield from _state_dicts(value, f"{label}.{key}" if label else str(key))


def _strip_prefixes(state: StateDict) -> StateDict:
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _kind(state: StateDict) -> Kind | None:
    if "quantize.embedding.weight" in state and any(n.startswith("decoder.") for n in state):
        return "tokenizer"
    if "post_quant_conv.weight" in state and any(n.startswith("decoder.") for n in state):
        return "KL autoencoder"
    if any(n.startswith("cond_diffloss.") for n in state):
        return "Hi-MAR"
    if any(n.startswith(("base_blocks.", "ns_blocks.")) for n in state):
        return "HMAR"
    if any(n.startswith("blocks.") for n in state) and "class_emb.weight" in state:
        return "masked stage" if "mask_embed.weight" in state else "next-scale stage"
    return None


def count_modules(state: Mapping[str, Tensor], group: str) -> int:
    """Length of a module list, from its keys."""
    indices = [int(m[1]) for n in state if (m := re.match(rf"{re.escape(group)}\.(\d+)\.", n))]
    return max(indices, default=-1) + 1
