"""Published checkpoint to model: read safely, understood from keys and shapes, checked strictly."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hmar.config import PATCH_NUMS_256, PATCH_NUMS_512, HMARConfig, TokenizerConfig
from hmar.errors import CheckpointKeyError, CheckpointReadError, CheckpointValueError
from hmar.hmar import HMAR
from hmar.vae import VQVAE

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
Kind = Literal["HMAR", "next-scale stage", "masked stage", "tokenizer"]

# Computed from the configuration, so never loaded; their shapes are still checked.
DERIVED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")
# No trained weight comes near float16's range; a flipped exponent bit does.
MAX_ABS = 65504.0
PREFIXES = ("module.", "_orig_mod.", "model.")
LISTED = 6  # names shown per group of an error


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
    if not 1 <= len(paths) <= 2:
        raise ValueError(
            f"expected one checkpoint or a pair of stage checkpoints, got {len(paths)} files"
        )
    wanted: tuple[Kind, ...] = ("HMAR", "next-scale stage", "masked stage")
    states = {}
    for path in paths:
        kind, state = read_checkpoint(path, wanted)
        if kind in states:
            raise CheckpointValueError(
                f"{path}: a second {kind} file; a pair is one next-scale and one masked stage"
            )
        states[kind] = state
    name = " + ".join(str(p) for p in paths)
    if "HMAR" in states:
        if len(states) > 1:
            raise CheckpointValueError(f"{name}: a merged HMAR file needs no second checkpoint")
        state = states["HMAR"]
    elif "next-scale stage" in states:
        state = merge_stages(
            states["next-scale stage"], states.get("masked stage"), branch_layers, name
        )
    else:
        raise CheckpointValueError(
            f"{name}: a masked stage alone cannot generate; add the next-scale stage file"
        )
    config = infer_hmar_config(state, name, num_heads)
    return _build(lambda: HMAR(config), state, name, derived_shapes=_derived_hmar(config))


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
    return _build(lambda: VQVAE(config, patch_nums), state, str(path), derived_shapes=derived)


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


# --- reading ------------------------------------------------------------------------------------


def read_checkpoint(path: Path, wanted: Sequence[Kind]) -> tuple[Kind, StateDict]:
    """Kind and tensors of the state dict of a wanted kind in a `.pth` or `.safetensors` file.

    Nothing in the file is executed, and `.pth` archives are checked against their checksums.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointReadError(f"{path}: no such file")
    _check_sidecar(path)
    found = []
    for label, state in _state_dicts(_read(path)):
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
    expected = " or ".join(wanted)
    raise CheckpointReadError(
        f"{path}: expected a checkpoint of kind {expected}, "
        f"found {', '.join(found) or 'no tensors'}"
    )


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
    if any(n.startswith(("base_blocks.", "ns_blocks.")) for n in state):
        return "HMAR"
    if any(n.startswith("blocks.") for n in state) and "class_emb.weight" in state:
        return "masked stage" if "mask_embed.weight" in state else "next-scale stage"
    return None


# --- the two training stages --------------------------------------------------------------------


def merge_stages(
    nsp: StateDict, mp: StateDict | None, branch_layers: int | None, name: str
) -> StateDict:
    """State dict of a merged HMAR from the next-scale stage and, if given, the masked stage."""
    depth = _count(nsp, "blocks")
    n = branch_layers if branch_layers is not None else _infer_branch_layers(nsp, mp, depth)
    if not 0 <= n <= depth:
        raise CheckpointValueError(
            f"{name}: branch_layers is {n}, the stage files have {depth} blocks"
        )
    merged = {_merged_name(key, "ns", depth - n): tensor for key, tensor in nsp.items()}
    if mp is not None:
        if _count(mp, "blocks") != depth:
            raise CheckpointValueError(
                f"{name}: the next-scale stage has {depth} blocks, "
                f"the masked stage {_count(mp, 'blocks')}"
            )
        for key, tensor in mp.items():
            new = _merged_name(key, "mask", depth - n)
            if new.startswith("mask_"):  # the rest are frozen copies of the next-scale stage
                merged[new] = tensor
    return merged


def _merged_name(key: str, branch: str, base_layers: int) -> str:
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        i = int(match[1])
        return (
            f"base_blocks.{i}.{match[2]}"
            if i < base_layers
            else f"{branch}_blocks.{i - base_layers}.{match[2]}"
        )
    if key.startswith(("head.", "head_nm.")):
        return f"{branch}_{key}"
    return "word_embed_bias" if key == "word_embed.bias" else key


def _infer_branch_layers(nsp: StateDict, mp: StateDict | None, depth: int) -> int:
    default = min(8, depth // 2)
    if mp is None:
        return default
    for shared in range(depth):
        keys = [k for k in nsp if k.startswith(f"blocks.{shared}.")]
        if not all(k in mp and torch.equal(nsp[k], mp[k]) for k in keys):
            break
    if shared == 0:
        logger.warning(
            "the stages share no frozen blocks; taking the last %d blocks as the branches", default
        )
        return default
    return depth - shared


# --- sizes from keys and shapes -----------------------------------------------------------------


def _count(state: Mapping[str, Tensor], group: str) -> int:
    indices = [int(m[1]) for n in state if (m := re.match(rf"{re.escape(group)}\.(\d+)\.", n))]
    return max(indices, default=-1) + 1


def _require(state: StateDict, names: Sequence[str], source: str) -> None:
    missing = tuple(n for n in names if n not in state)
    if missing:
        raise CheckpointKeyError(
            f"{source}: missing keys that tell the model's size: {', '.join(missing)}",
            missing=missing,
        )


def infer_hmar_config(state: StateDict, source: str, num_heads: int | None = None) -> HMARConfig:
    """Sizes of a merged HMAR from its keys and shapes."""
    _require(
        state,
        ("class_emb.weight", "pos_1LC", "lvl_embed.weight", "word_embed.weight", "ns_head.weight"),
        source,
    )
    classes, width = state["class_emb.weight"].shape
    branch_layers = _count(state, "ns_blocks")
    scale_mul = next((t for n, t in state.items() if n.endswith("attn.scale_mul_1H11")), None)
    if num_heads is None:
        num_heads = width // 64 if scale_mul is None else scale_mul.numel()
    fc1 = next((t for n, t in state.items() if n.endswith("ffn.fc1.weight")), None)
    try:
        return HMARConfig(
            depth=_count(state, "base_blocks") + branch_layers,
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
    levels = _count(state, "encoder.down")
    firsts = [f"encoder.down.{i}.block.0.conv2.weight" for i in range(levels)]
    _require(state, ("encoder.conv_in.weight", "quantize.embedding.weight", *firsts), source)
    base = state["encoder.conv_in.weight"].shape[0]
    vocab, latent = state["quantize.embedding.weight"].shape
    return TokenizerConfig(
        vocab_size=vocab,
        latent_channels=latent,
        base_channels=base,
        channel_mult=tuple(state[name].shape[0] // base for name in firsts),
        num_res_blocks=_count(state, "encoder.down.0.block"),
        num_phi=_count(state, "quantize.quant_resi.qresi_ls"),
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


# --- strict loading -----------------------------------------------------------------------------


def _build(
    make: Callable[[], nn.Module],
    state: StateDict,
    source: str,
    derived_shapes: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    """A model with the given weights, after comparing every name, shape and value."""
    with torch.device("meta"):
        model = make()
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _check_keys(state, expected, derived_shapes, source)
    weights = {name: state[name].float() for name in expected}
    _check_values(weights, state, source)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _check_keys(
    state: StateDict,
    expected: Mapping[str, tuple[int, ...]],
    derived: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    missing = tuple(n for n in expected if n not in state)
    unexpected = tuple(n for n in state if n not in expected and n not in derived)
    misshapen = {
        n: (tuple(state[n].shape), shape)
        for n, shape in {**expected, **derived}.items()
        if n in state and tuple(state[n].shape) != shape
    }
    if not (missing or unexpected or misshapen):
        return
    groups = (
        ("missing", [f"{n} {list(expected[n])}" for n in missing]),
        ("unexpected", [f"{n} {list(state[n].shape)}" for n in unexpected]),
        (
            "misshapen",
            [
                f"{n}: found {list(got)}, expected {list(want)}"
                for n, (got, want) in misshapen.items()
            ],
        ),
    )
    lines = [f"{source}: the keys do not fit the published layout"]
    for title, items in groups:
        if items:
            more = [f"… and {len(items) - LISTED} more"] if len(items) > LISTED else []
            lines.append(f"  {title} ({len(items)}):")
            lines += [f"    {item}" for item in items[:LISTED] + more]
    raise CheckpointKeyError(
        "\n".join(lines), missing=missing, unexpected=unexpected, misshapen=misshapen
    )


def _check_values(weights: StateDict, state: StateDict, source: str) -> None:
    bad = []
    for name, tensor in weights.items():
        low, high = (v.item() for v in torch.aminmax(tensor))
        if not (-MAX_ABS <= low and high <= MAX_ABS):  # also False for NaN
            bad.append(f"{name} (range {low:g} … {high:g})")
    if bad:
        more = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        raise CheckpointValueError(
            f"{source}: weights that are not finite or beyond ±{MAX_ABS:g}: "
            f"{', '.join(bad[:LISTED])}{more}; the file is damaged or training diverged"
        )
    for name, tensor in state.items():
        if name.endswith("zero_k_bias") and tensor.any():
            raise CheckpointValueError(
                f"{source}: {name} must be zero; models with a key bias are not supported"
            )
