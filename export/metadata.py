"""What the manifest says of an HMAR model: sizes, sampling defaults; class names of any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.errors import ExportError
from hmar.config import (
    PUBLISHED_SAMPLING,
    HMARConfig,
    PublishedSampling,
    default_schedule,
    preset_name,
)
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from runtime.bundle import ModelSpec, SamplingDefaults, parse_class_names


def model_spec(model: HMAR, tokenizer: VQVAE) -> ModelSpec:
    """Sizes that the runtime needs."""
    config = model.config
    return ModelSpec(
        preset=preset_name(config),
        depth=config.depth,
        branch_layers=config.branch_layers,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        latent_channels=config.latent_channels,
        patch_nums=config.patch_nums,
        shared_aln=config.shared_aln,
        attn_l2_norm=config.attn_l2_norm,
        has_mask_branch=config.has_mask_branch,
        image_side_px=config.patch_nums[-1] * tokenizer.config.downsampling,
    )


def sampling_defaults(config: HMARConfig, file: Path | None) -> SamplingDefaults:
    """Sampling settings of a bundle: those of a JSON file, else those published for this depth.

    Args:
        config: the model's sizes; top_k is cut to the vocabulary.
        file: JSON object with any of `cfg`, `top_k`, `top_p`, `mask_schedule`.

    Raises:
        ExportError: the file is unreadable or has other fields.
    """
    published = PUBLISHED_SAMPLING.get(config.depth, PublishedSampling())
    schedule = default_schedule(config.patch_nums) if config.has_mask_branch else None
    settings: dict[str, Any] = {
        "cfg": published.cfg,
        "top_k": min(published.top_k, config.vocab_size),
        "top_p": published.top_p,
        "mask_schedule": schedule,
    }
    settings = read_settings(settings, file)
    entries = settings["mask_schedule"]
    try:
        defaults = SamplingDefaults(
            cfg=float(settings["cfg"]),
            top_k=int(settings["top_k"]),
            top_p=float(settings["top_p"]),
            mask_schedule=None if entries is None else tuple(tuple(map(int, e)) for e in entries),
        )
    except (TypeError, ValueError) as error:
        raise ExportError(f"{file}: not sampling settings ({error})") from error
    if defaults.mask_schedule is not None and len(defaults.mask_schedule) != config.num_scales:
        raise ExportError(
            f"{file}: mask_schedule has {len(defaults.mask_schedule)} entries, "
            f"the model has {config.num_scales} scales"
        )
    return defaults


def read_class_names(file: Path, num_classes: int) -> tuple[str, ...]:
    """Names of the classes in label order, from a JSON list.

    Raises:
        ExportError: the file is unreadable or does not fit the model.
    """
    try:
        return parse_class_names(file.read_text(encoding="utf-8"), str(file), num_classes)
    except (OSError, ValueError) as error:
        raise ExportError(str(error)) from error


def read_settings(settings: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The settings, with those of a JSON file in their place.

    Raises:
        ExportError: the file is unreadable or has other fields.
    """
    given = {} if file is None else _read_json_object(file)
    if unknown := set(given) - set(settings):
        raise ExportError(f"{file}: unknown settings {sorted(unknown)}, not in {list(settings)}")
    return settings | given


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ExportError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data
