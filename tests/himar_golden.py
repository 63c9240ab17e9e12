"""Golden cases of Hi-MAR: models with recipe weights, recorded runs, and comparison with them.

The suite's folder holds one whole generation (tiny_a.iter1); of the others it leaves out what
follows from the arrays that are there: images, and z of all positions. The whole files, and the
real-size cases, are read from a folder given on the command line.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hmar.config import HIMAR_PRESETS, HiMARConfig, KLVAEConfig
from hmar.himar import HiMAR, Phase
from hmar.himar_reference import generate, generate_tokens, to_uint8
from hmar.himar_schedule import HiMARSampling
from hmar.kl_vae import KLVAE
from hmar.quant import flatten_map
from tests.golden_data import GOLDEN

HIMAR_GOLDEN = GOLDEN / "himar"
PROBES = 64

Model = TypeVar("Model", bound=nn.Module)
Arrays = dict[str, np.ndarray]


@lru_cache
def recipe() -> ModuleType:
    """The weight and noise recipe, loaded from the golden folder."""
    spec = importlib.util.spec_from_file_location("himar_recipe", HIMAR_GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def tolerances() -> dict[str, dict[str, list[float]]]:
    return json.loads((HIMAR_GOLDEN / "tolerances.json").read_text())["cases"]


def config_of(case: Mapping[str, Any]) -> HiMARConfig:
    """Sizes of a case: a preset by the reference's name of it, or the arguments of its model."""
    if "factory" in case:
        return HIMAR_PRESETS[f"{case['factory'].replace('_', '-')}-{case['img_size']}"]
    return HiMARConfig(
        embed_dim=case["encoder_embed_dim"],
        encoder_depth=case["encoder_depth"],
        decoder_depth=case["decoder_depth"],
        encoder_heads=case["encoder_num_heads"],
        decoder_heads=case["decoder_num_heads"],
        mlp_depth=case["diffloss_d"],
        mlp_width=case["diffloss_w"],
        dit_depth=case["gdm_d"],
        dit_width=case["gdm_w"],
        dit_heads=case["head"],
        pivot_side=case["cond_scale"],
        dense_side=case["img_size"] // case["vae_stride"],
        token_channels=case["vae_embed_dim"],
        buffer_size=case["buffer_size"],
        num_classes=case["class_num"],
        mlp_ratio=case["mlp_ratio"],
        dit_mlp_ratio=float(case["ratio"]),
    )


def vae_config_of(vae: Mapping[str, Any]) -> KLVAEConfig:
    return KLVAEConfig(
        latent_channels=vae["embed_dim"],
        base_channels=vae["ch"],
        channel_mult=tuple(vae["ch_mult"]),
    )


def fill(model: Model, seed: int) -> Model:
    """Gives a model its recipe weights."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights = {name: torch.from_numpy(w) for name, w in recipe().fill(shapes, seed).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def published_keys(name: str, folder: Path = HIMAR_GOLDEN) -> dict[str, tuple[int, ...]]:
    """Shapes of a published key layout."""
    keys = json.loads((folder / "keys" / f"{name}.json").read_text())["keys"]
    return {key: tuple(shape) for key, (shape, _) in keys.items()}


def published_state(name: str, seed: int, folder: Path = HIMAR_GOLDEN) -> dict[str, Tensor]:
    """A state dict in a published key layout, with recipe weights."""
    weights = recipe().fill(published_keys(name, folder), seed)
    return {key: torch.from_numpy(weight) for key, weight in weights.items()}


@lru_cache(maxsize=1)
def recipe_model(config: HiMARConfig, seed: int) -> HiMAR:
    with torch.device("meta"):
        model = HiMAR(config)
    return fill(model, seed)


@lru_cache(maxsize=1)
def recipe_vae(config: KLVAEConfig, seed: int) -> KLVAE:
    with torch.device("meta"):
        vae = KLVAE(config)
    return fill(vae, seed)


class HiMARCase:
    """One golden JSON file with its arrays, tolerances and models."""

    def __init__(self, name: str, folder: Path = HIMAR_GOLDEN) -> None:
        self.name, self.folder = name, folder
        self.json: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())

    @cached_property
    def arrays(self) -> Arrays:
        with np.load(self.folder / f"{self.name}.npz") as data:
            return dict(data)

    @property
    def model(self) -> HiMAR:
        return recipe_model(config_of(self.json["config"]), self.json["weight_seed"])

    @property
    def vae(self) -> KLVAE:
        return recipe_vae(vae_config_of(self.json["vae"]), self.json["vae_seed"])

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def drawn(self, name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        """A module input: stored in the small cases, drawn in the real-size ones."""
        array = recipe().unit(self.json["input_seed"], f"in/{name}", shape, 0.0, scale)
        return torch.from_numpy(array.astype(np.float32))

    def noise(self, call: int, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(recipe().noise(self.json["noise_seed"], call, shape))

    def check(self, name: str, value: Any, part: Any = ...) -> None:
        """Compares a value with (a part of) the array of this name, or with its probe and sums."""
        value = np.asarray(value)
        if name in self.arrays:
            self._check(name, value, self.arrays[name][part])
            return
        for suffix, numbers in (("probe", probe(value)), ("stat", statistics(value))):
            self._check(f"{name}.{suffix}", numbers, self.arrays[f"{name}.{suffix}"])

    def _check(self, name: str, value: np.ndarray, ref: np.ndarray) -> None:
        assert value.shape == ref.shape, f"{name}: shape {value.shape}, expected {ref.shape}"
        if ref.dtype == np.uint8:
            assert np.abs(value.astype(int) - ref).max() <= 1, name
        elif ref.dtype == np.bool_ or ref.dtype.kind == "i":
            np.testing.assert_array_equal(value, ref, err_msg=name)
        else:
            atol = tolerances()[self.name][name][0]
            worst = np.abs(value.astype(np.float64) - ref).max()
            assert worst <= atol, f"{self.name} {name}: max error {worst:.2e} (limit {atol:.1e})"


def probe(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(-1)
    return flat[np.arange(PROBES) * (flat.size - 1) // (PROBES - 1)]


def statistics(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(-1).astype(np.float64)
    weighted = (flat * recipe().unit(0, "probe", flat.shape)).sum() / np.sqrt(flat.size)
    return np.array([flat.mean(), flat.std(), np.abs(flat).max(), weighted])


# --- whole generations --------------------------------------------------------------------------


def sampling_of(case: HiMARCase) -> HiMARSampling:
    call, config = case.json["sampler"], case.json["config"]
    return HiMARSampling(
        num_iter=call["num_iter"],
        cfg=call["cfg"],
        re_cfg=call["re_cfg"],
        cfg_schedule=call["cfg_schedule"],
        temperature=call["temperature"],
        pivot_respacing=config["num_sampling_steps"],
        dense_respacing=config["dit_steps"],
    )


def noise_call(case: HiMARCase, phase: Phase, step: int, draw: int) -> int:
    """Number in the reference's sequence, which also counts what it draws and does not use."""
    if phase == "pivot":
        return int(case.arrays["p1.first_call"][step]) + draw
    return int(case.arrays["p2.first_call"][step]) + 2 * draw


def run_reference(case: HiMARCase) -> Arrays:
    """A golden generation again; arrays of the steps of a phase are stacked."""
    model, C = case.model, case.model.config.token_channels
    labels = case.json["sampler"]["labels"]

    def noise(phase: Phase, step: int, positions_Bn: Tensor, draw: int) -> Tensor:
        call, (B, n) = noise_call(case, phase, step, draw), positions_Bn.shape
        if phase == "pivot":
            return case.noise(call, (B, n, C))
        side = model.config.dense_side
        return flatten_map(case.noise(call, (B, C, side, side)))

    seen: dict[str, list[np.ndarray]] = defaultdict(list)

    def record(name: str, value: Tensor) -> None:
        seen[name].append(value.numpy())

    cond_BD = model.cond([-1] * case.json["sampler"]["bsz"] if labels is None else labels)
    given = cond_BD, case.tensor("orders").long(), sampling_of(case), noise, record
    if case.json["vae"] is None:
        generate_tokens(model, *given)
    else:
        generate(model, case.vae, *given)
    per_step = ("mask", "tokens", "cfg", "head_rows", "z", "head_out")
    stacked = {
        name: np.stack(values) if name.split(".")[-1] in per_step else values[0]
        for name, values in seen.items()
    }
    for name in {"image", "small_image_64"} & set(stacked):
        stacked[f"{name}_uint8"] = to_uint8(torch.from_numpy(stacked[name])).numpy()
    return stacked


def compare_generation(case: HiMARCase, ours: Arrays) -> None:
    """Fails at the first stored array that a generation differs from; compares all of them."""
    for name in case.arrays:
        if name in ("orders", "p1.first_call", "p2.first_call"):  # what was given
            continue
        if name == "image.crop":
            case.check(name, ours["image"][:, :, 96:128, 96:128])
        elif name.endswith(".stat"):
            continue  # with its probe
        elif name.endswith(".probe"):
            name = name.removesuffix(".probe")
            stack, _, step = name.rpartition(".")
            case.check(name, ours[stack][int(step)] if step.isdigit() else ours[name])
        else:
            case.check(name, ours[name])
