"""What the manifest says of a Hi-MAR model: sizes and sampling defaults."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from export.errors import ExportError
from export.metadata import read_settings
from hmar.config import HiMARConfig, preset_name
from hmar.diffusion import respaced_timesteps
from hmar.himar import HiMAR
from hmar.himar_schedule import PUBLISHED_HIMAR_SAMPLING, HiMARSampling
from hmar.kl_vae import KLVAE
from runtime.bundle import HiMARModelSpec, HiMARSamplingDefaults


def model_spec(model: HiMAR, vae: KLVAE, num_iter: int) -> HiMARModelSpec:
    """Sizes that the runtime needs."""
    config = model.config
    return HiMARModelSpec(
        preset=preset_name(config),
        embed_dim=config.embed_dim,
        encoder_depth=config.encoder_depth,
        decoder_depth=config.decoder_depth,
        num_classes=config.num_classes,
        token_channels=config.token_channels,
        pivot_side=config.pivot_side,
        dense_side=config.dense_side,
        num_iter=num_iter,
        image_side_px=config.dense_side * vae.config.downsampling,
        latent_scale=vae.config.latent_scale,
    )


def sampling_defaults(
    config: HiMARConfig, file: Path | None, num_iter: int | None
) -> HiMARSamplingDefaults:
    """Sampling settings of a bundle: those of a JSON file, else those published for these sizes.

    Args:
        file: JSON object with any of the fields of `HiMARSamplingDefaults`.
        num_iter: steps of the dense phase, whatever the file says.

    Raises:
        ExportError: the file is unreadable, or a setting is unknown or out of range.
    """
    preset = preset_name(config)
    published = PUBLISHED_HIMAR_SAMPLING[preset] if preset else HiMARSampling()
    settings = asdict(published)
    for phase in ("pivot", "dense"):
        settings[f"{phase}_diffusion_steps"] = settings.pop(f"{phase}_respacing")
    settings = read_settings(settings, file)
    if num_iter is not None:
        settings["num_iter"] = num_iter
    try:
        defaults = _checked(settings)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{file or 'num_iter'}: not sampling settings ({error})") from error
    if defaults.num_iter > config.num_dense:
        raise ExportError(
            f"{file or 'num_iter'}: num_iter is {defaults.num_iter}, and the model has only "
            f"{config.num_dense} dense tokens to predict"
        )
    return defaults


def _checked(settings: dict) -> HiMARSamplingDefaults:
    """The settings, each of its type.

    Raises:
        TypeError, ValueError: a setting is out of range.
    """
    defaults = HiMARSamplingDefaults(
        num_iter=int(settings["num_iter"]),
        cfg=float(settings["cfg"]),
        re_cfg=float(settings["re_cfg"]),
        cfg_schedule=settings["cfg_schedule"],
        temperature=float(settings["temperature"]),
        pivot_diffusion_steps=str(settings["pivot_diffusion_steps"]),
        dense_diffusion_steps=str(settings["dense_diffusion_steps"]),
    )
    reference_sampling(defaults)
    for respacing in (defaults.pivot_diffusion_steps, defaults.dense_diffusion_steps):
        respaced_timesteps(respacing)
    return defaults


def reference_sampling(defaults: HiMARSamplingDefaults) -> HiMARSampling:
    """The same settings as the reference takes them."""
    return HiMARSampling(
        num_iter=defaults.num_iter,
        cfg=defaults.cfg,
        re_cfg=defaults.re_cfg,
        cfg_schedule=defaults.cfg_schedule,
        temperature=defaults.temperature,
        pivot_respacing=defaults.pivot_diffusion_steps,
        dense_respacing=defaults.dense_diffusion_steps,
    )
