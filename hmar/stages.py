"""The two training stages, next-scale and masked, merged to one HMAR."""

from __future__ import annotations

import logging
import re

import torch

from hmar.checkpoint_file import StateDict, count_modules
from hmar.errors import CheckpointValueError

logger = logging.getLogger(__name__)


def merge_stages(
    nsp: StateDict, mp: StateDict | None, branch_layers: int | None, name: str
) -> StateDict:
    """State dict of a merged HMAR from the next-scale stage and, if given, the masked stage."""
    depth = count_modules(nsp, "blocks")
    n = branch_layers if branch_layers is not None else _infer_branch_layers(nsp, mp, depth)
    if not 0 <= n <= depth:
        raise CheckpointValueError(
            f"{name}: branch_layers is {n}, the stage files have {depth} blocks"
        )
    merged = {_merged_name(key, "ns", depth - n): tensor for key, tensor in nsp.items()}
    if mp is not None:
        if count_modules(mp, "blocks") != depth:
            raise CheckpointValueError(
                f"{name}: the next-scale stage has {depth} blocks, "
                f"the masked stage {count_modules(mp, 'blocks')}"
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
