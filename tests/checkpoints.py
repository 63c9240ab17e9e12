"""Checkpoint files in the published key layout, with recipe weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden_data import GOLDEN, recipe

SEEDS = {"hmar_seed": 1, "vae_seed": 2}  # of models that no golden trace is of
Shapes = dict[str, tuple[int, ...]]
KEY_FILES = {
    "hmar": "hmar-d16.json",
    "nsp": "nsp-d16.json",
    "mp": "mp-d16.json",
    "vae": "vqvae-vae_ch160v4096z32.json",
}


def key_shapes(kind: str, config: dict[str, Any]) -> Shapes:
    """Shapes of a published key layout, adapted to a golden case's sizes."""
    layout = json.loads((GOLDEN / "hmar" / "keys" / KEY_FILES[kind]).read_text())["state_dict"]
    published = {k: tuple(v[0]) for k, v in layout.items()}
    return (
        _vae_shapes(published, config) if kind == "vae" else _hmar_shapes(published, kind, config)
    )


def published_config(depth: int, side_px: int) -> dict[str, Any]:
    """Sizes of a published model that needs no golden trace, in the form of a golden case."""
    layouts = GOLDEN / "hmar" / "keys"
    config = json.loads((layouts / f"hmar-d{depth}.json").read_text())["config"]
    if side_px != config["image_size"]:
        other = json.loads((layouts / f"hmar-d16-{side_px}.json").read_text())["config"]
        config |= {key: other[key] for key in ("patch_nums", "L", "image_size")}
    return {**config, **SEEDS}


def _hmar_shapes(published: Shapes, kind: str, config: dict[str, Any]) -> Shapes:
    C, L, S = config["embed_dim"], config["L"], len(config["patch_nums"])
    sizes = {
        1024: C,
        2048: 2 * C,
        3072: 3 * C,
        4096: 4 * C,
        6144: 6 * C,
        680: L,
        10: S,
        16: config["num_heads"],
    }
    sizes |= {1001: config["num_classes"] + 1, 32: config["Cvae"], 1: 1}
    n = config["n_layers_train"]
    counts = {
        "base_blocks": config["depth"] - n,
        "ns_blocks": n,
        "mask_blocks": n,
        "blocks": config["depth"],
    }
    shapes: Shapes = {}
    for key, shape in published.items():
        group, *rest = key.split(".")
        adapted = tuple(sizes[s] for s in shape)
        if key.endswith(("head.weight", "head.bias")):
            adapted = (config["V"], *adapted[1:])
        if group in counts:
            if rest[0] == "0":
                for i in range(counts[group]):
                    shapes[".".join((group, str(i), *rest[1:]))] = adapted
        else:
            shapes[key] = adapted
    if not config["attn_l2_norm"]:
        shapes = {k: s for k, s in shapes.items() if not k.endswith("scale_mul_1H11")}
    if config["shared_aln"]:
        shapes = _share_aln(shapes, C)
    return shapes


def _share_aln(shapes: Shapes, C: int) -> Shapes:
    shared: Shapes = {}
    for key, shape in shapes.items():
        if "blocks." in key and key.endswith("ada_lin.1.weight"):
            shared[key.removesuffix("ada_lin.1.weight") + "ada_gss"] = (1, 1, 6, C)
        elif not ("blocks." in key and "ada_lin" in key):
            shared[key] = shape
    return {**shared, "shared_ada_lin.1.weight": (6 * C, C), "shared_ada_lin.1.bias": (6 * C,)}


def _vae_shapes(published: Shapes, config: dict[str, Any]) -> Shapes:
    ch, V, Cvae, S = config["ch"], config["V"], config["Cvae"], len(config["patch_nums"])
    shapes: Shapes = {}
    for key, shape in published.items():
        if key == "quantize.ema_vocab_hit_SV":
            shapes[key] = (S, V)
        elif key == "quantize.embedding.weight":
            shapes[key] = (V, Cvae)
        else:
            # every width is a multiple of 160; 32 appears as the latent width only
            shapes[key] = tuple(
                s // 160 * ch if s % 160 == 0 else Cvae if s == 32 else s for s in shape
            )
    return shapes


def state_dict(kind: str, config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """A published state dict with recipe weights and the derived buffers."""
    shapes = key_shapes(kind, config)
    with ThreadPoolExecutor() as pool:  # a tensor depends on its own name and shape alone
        filled = pool.map(lambda item: recipe().fill(dict([item]), seed), shapes.items())
        state = {k: torch.from_numpy(w) for part in filled for k, w in part.items()}
    for key, shape in shapes.items():
        if recipe().is_buffer(key):
            state[key] = torch.from_numpy(
                np.ascontiguousarray(recipe().buffer(key, shape, config["patch_nums"]))
            )
    return {key: state[key] for key in shapes}


def write_pth(folder: Path, kind: str, config: dict[str, Any]) -> Path:
    """A `.pth` file as published, named after its kind."""
    seeds = {"hmar": "hmar_seed", "nsp": "nsp_seed", "mp": "mp_seed", "vae": "vae_seed"}
    path = folder / f"{kind}.pth"
    torch.save(state_dict(kind, config, config[seeds[kind]]), path)
    return path
