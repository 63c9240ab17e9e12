"""Golden cases as the command line takes them, and bundles made from them once per session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from export import ExportConfig, export_bundle
from runtime.config import SamplingConfig
from runtime.draws import ArgmaxDraws, Draws, RecordedDraws
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from tests.checkpoints import write_pth
from tests.golden_data import Case


def labels_of(call: Mapping[str, Any]) -> list[int]:
    labels = call["labels"]
    return [labels] * call["batch"] if isinstance(labels, int) else list(labels)


def sampling_of(call: Mapping[str, Any]) -> SamplingConfig:
    return SamplingConfig(
        cfg=call["cfg"],
        top_k=call["top_k"],
        top_p=call["top_p"],
        mask_schedule=call["mask_schedule"] if call.get("mask") else None,
        context="prefix" if call.get("kv_cache") else "scale",
    )


def draws_of(entry: Mapping[str, Any], golden: Mapping[str, np.ndarray]) -> Draws:
    uniforms = {n: u for n, u in golden.items() if n.endswith("_u")}
    return RecordedDraws(uniforms) if uniforms else ArgmaxDraws()


def run_pipeline(
    pipeline: Pipeline, entry: Mapping[str, Any], golden: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Regenerates a golden trace from a bundle."""
    trace, call = Trace(logits=True), entry["call"]
    pipeline.generate(
        labels_of(call), sampling=sampling_of(call), draws=draws_of(entry, golden), trace=trace
    )
    return trace.arrays()


@dataclasses.dataclass(frozen=True)
class Files:
    """Checkpoint files of one case."""

    ckpt: tuple[Path, ...]
    vae: Path


@lru_cache
def tiny_variant(name: str = "plain") -> Case:
    """The tiny golden case, or one with another architecture option; weights from the recipe."""
    case = Case("tiny")
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "shared-aln": {"shared_aln": True},
        "no-l2-norm": {"attn_l2_norm": False},
        "shared-aln-without-l2-norm": {"shared_aln": True, "attn_l2_norm": False},
        "five-scales": {"patch_nums": [1, 2, 3, 5, 6], "L": 75, "depth": 3, "n_layers_train": 1},
    }
    case.config = {**case.config, **changes[name]}
    return case


def write_files(folder: Path, case: Case, kinds: tuple[str, ...] = ("hmar",)) -> Files:
    return Files(
        tuple(write_pth(folder, kind, case.config) for kind in kinds),
        write_pth(folder, "vae", case.config),
    )


def make_bundle(
    folder: Path, case: Case, kinds: tuple[str, ...] = ("hmar",), precision: str = "fp32"
) -> Path:
    """Exports a case from files in the published layout."""
    files = write_files(folder, case, kinds)
    return export_bundle(
        ExportConfig(precision=precision), files.ckpt, files.vae, folder / "bundle"
    ).bundle
