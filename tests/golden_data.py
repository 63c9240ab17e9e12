"""Golden cases: their models with recipe weights, and one comparison function."""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from hmar.config import HMARConfig, TokenizerConfig
from hmar.hmar import HMAR
from hmar.vae import VQVAE

GOLDEN = Path(__file__).parent / "golden"


@lru_cache
def recipe() -> ModuleType:
    """The weight recipe, loaded from the golden folder."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Case:
    """One golden JSON file with its arrays and models."""

    def __init__(self, name: str, folder: Path = GOLDEN / "hmar") -> None:
        self.name, self.folder = name, folder
        self.json = json.loads((folder / f"{name}.json").read_text())
        self.config: dict[str, Any] = self.json["config"]

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / file) as data:
            return dict(data)

    @cached_property
    def modules(self) -> dict[str, np.ndarray]:
        return self.arrays(self.json["modules"])

    @property
    def traces(self) -> list[str]:
        return list(self.json["traces"])

    def trace(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        entry = self.json["traces"][name]
        return entry, self.arrays(entry["file"])

    @property
    def hmar_config(self) -> HMARConfig:
        c = self.config
        return HMARConfig(
            depth=c["depth"],
            branch_layers=c["n_layers_train"],
            embed_dim=c["embed_dim"],
            num_heads=c["num_heads"],
            patch_nums=tuple(c["patch_nums"]),
            num_classes=c["num_classes"],
            vocab_size=c["V"],
            latent_channels=c["Cvae"],
            shared_aln=c["shared_aln"],
            attn_l2_norm=c["attn_l2_norm"],
        )

    @property
    def tokenizer_config(self) -> TokenizerConfig:
        c = self.config
        return TokenizerConfig(
            vocab_size=c["V"],
            latent_channels=c["Cvae"],
            base_channels=c["ch"],
            channel_mult=tuple(c["vae_ch_mult"]),
        )

    @cached_property
    def model(self) -> HMAR:
        with torch.device("meta"):
            model = HMAR(self.hmar_config)
        return fill(model, self.config["hmar_seed"])

    @cached_property
    def tokenizer(self) -> VQVAE:
        with torch.device("meta"):
            model = VQVAE(self.tokenizer_config, self.config["patch_nums"])
        return fill(model, self.config["vae_seed"])


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Gives a model its recipe weights."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights = {name: torch.from_numpy(w) for name, w in recipe().fill(shapes, seed).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def assert_close(
    name: str, ref: Any, out: Any, rms_ratio: float = 2e-6, max_abs: float | None = None
) -> None:
    """Fails unless the RMS error of `out`, relative to the RMS of `ref`, is at most `rms_ratio`.

    The default leaves room for another summation order in float32 and for nothing else.
    """
    ref, out = np.asarray(ref), np.asarray(out)
    assert ref.shape == out.shape, f"{name}: shape {out.shape}, expected {ref.shape}"
    assert np.isfinite(out).all() or not np.isfinite(ref).all(), f"{name}: not finite"
    error = out.astype(np.float64) - ref.astype(np.float64)
    ratio = np.sqrt((error**2).mean()) / max(np.sqrt((ref.astype(np.float64) ** 2).mean()), 1e-12)
    worst = np.abs(error).max()
    message = f"{name}: rms ratio {ratio:.2e} (limit {rms_ratio:.0e}), max error {worst:.2e}"
    assert ratio <= rms_ratio, message
    assert max_abs is None or worst <= max_abs, f"{message} (limit {max_abs:.0e})"
