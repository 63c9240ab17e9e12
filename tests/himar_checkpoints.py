"""Hi-MAR checkpoint files as published, with recipe weights, and bundles made from them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from export import ExportConfig, export_bundle
from tests.himar_golden import published_keys, published_state


@dataclass(frozen=True)
class Recipe:
    """What a golden case's checkpoint files are filled from; heads as `export_bundle` takes them.

    The heads of himar_base are those of the published model.
    """

    seed: int
    vae: str
    vae_seed: int
    num_heads: tuple[int, ...] = ()


CASES = {
    "tiny_a": Recipe(11, "vae_tiny", 21, (4, 2, 4)),
    "narrow": Recipe(12, "vae_tiny", 21, (4, 4, 4)),
    "himar_base": Recipe(13, "vae_kl16", 22),
}


def write_himar(folder: Path, case: str) -> Path:
    """What a training run saves; the averages are meant, and the other weights are all zero."""
    path = folder / "checkpoint-last.pth"
    zero = torch.zeros(())  # its expanded views take no space in the file
    entries = {
        "model": {name: zero.expand(shape) for name, shape in published_keys(case).items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model=case, betas=(0.9, 0.95), resume=None),
        "model_ema": published_state(case, CASES[case].seed),
    }
    torch.save(entries, path)
    return path


def write_kl_vae(folder: Path, case: str) -> Path:
    """The autoencoder's training state."""
    path = folder / "kl16.ckpt"
    torch.save({"model": published_state(CASES[case].vae, CASES[case].vae_seed)}, path)
    return path


def make_himar_bundle(
    folder: Path, case: str = "tiny_a", precision: str = "fp32", *, verify: bool = True
) -> Path:
    """Exports a case from files in the published layout."""
    return export_bundle(
        ExportConfig(precision=precision, verify=verify),
        [write_himar(folder, case)],
        write_kl_vae(folder, case),
        folder / "bundle",
        num_heads=CASES[case].num_heads,
    ).bundle
