"""Hi-MAR checkpoint files: what is understood, and what is refused with which message."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hmar.checkpoint import load_hmar, load_tokenizer
from hmar.config import HIMAR_PRESETS, KLVAEConfig, preset_name
from hmar.errors import CheckpointKeyError, CheckpointReadError, CheckpointValueError
from hmar.himar import HiMAR
from hmar.himar_checkpoint import (
    check_himar_pair,
    infer_himar_config,
    infer_kl_vae_config,
    load_himar,
    load_kl_vae,
)
from hmar.kl_vae import KLVAE
from tests.checkpoints import write_pth
from tests.golden_data import Case
from tests.himar_golden import HiMARCase, config_of, published_keys, published_state

TINY = HiMARCase("tiny_a.linear")
HEADS = {"encoder_heads": 4, "decoder_heads": 2, "dit_heads": 4}
UNUSED = ("cond_tokens", "cond_diffloss.net.c_pos_embed")
State = dict[str, torch.Tensor]


def himar_state() -> State:
    return published_state("tiny_a", TINY.json["weight_seed"])


def vae_state() -> State:
    return published_state("vae_tiny", TINY.json["vae_seed"])


def saved(folder: Path, obj: Any, name: str = "himar.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(obj, path)
    else:
        torch.save(obj, path)
    return path


def layout(name: str) -> State:
    """A published layout as empty tensors."""
    return {k: torch.empty(shape, device="meta") for k, shape in published_keys(name).items()}


def parameter_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


# --- understood -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_published_layouts_are_the_presets(size: str) -> None:
    keys = published_keys(f"himar_{size}")
    config = infer_himar_config(layout(f"himar_{size}"), size)
    assert preset_name(config) == f"himar-{size}-256"
    with torch.device("meta"):
        shapes = parameter_shapes(HiMAR(config))
    assert shapes == {name: shape for name, shape in keys.items() if name not in UNUSED}


@pytest.mark.parametrize(
    ("name", "config"), [("vae_kl16", KLVAEConfig()), ("vae_tiny", KLVAEConfig(base_channels=32))]
)
def test_published_autoencoder_layout(name: str, config: KLVAEConfig) -> None:
    assert infer_kl_vae_config(layout(name), name) == config
    with torch.device("meta"):
        assert parameter_shapes(KLVAE(config)) == published_keys(name)


def as_published(state: State) -> dict[str, Any]:
    """Everything that a training run saves; the averages come last and are meant."""
    return {
        "model": {name: torch.zeros_like(t) for name, t in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="himar_base", betas=(0.9, 0.95), resume=None),
        "model_ema": state,
    }


@pytest.mark.parametrize(
    "wrap",
    [
        as_published,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {k: v.half() for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if k not in UNUSED},
    ],
    ids=["published", "without-ema", "prefixed", "half", "without-unused"],
)
def test_transformer(tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    model = load_himar(saved(tmp_path, wrap(himar_state())), **HEADS)
    assert model.config == config_of(TINY.json["config"])
    for (name, ours), (_, expected) in zip(
        model.named_parameters(), TINY.model.named_parameters(), strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3, msg=name)


def test_safetensors(tmp_path: Path) -> None:
    model = load_himar(saved(tmp_path, himar_state(), "himar.safetensors"), **HEADS)
    assert model.config == config_of(TINY.json["config"])


def test_autoencoder(tmp_path: Path) -> None:
    training = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.bias": torch.zeros(64)}
    vae = load_kl_vae(saved(tmp_path, {"model": vae_state() | training}, "kl16.ckpt"))
    for (name, ours), (_, expected) in zip(
        vae.named_parameters(), TINY.vae.named_parameters(), strict=True
    ):
        assert torch.equal(ours, expected), name


def test_heads_that_no_published_model_tells(tmp_path: Path) -> None:
    config = load_himar(saved(tmp_path, himar_state())).config
    assert (config.encoder_heads, config.decoder_heads, config.dit_heads) == (1, 1, 1)
    assert HIMAR_PRESETS["himar-huge-256"].encoder_heads == 16  # 80 channels, not 64


def test_model_conditioned_by_vectors(tmp_path: Path) -> None:
    state = himar_state()
    del state["class_emb.weight"]
    model = load_himar(saved(tmp_path, state), **HEADS)
    assert model.config.num_classes == 0 and not hasattr(model, "class_emb")


# --- refused ------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_keys_in_one_error(tmp_path: Path) -> None:
    state = himar_state()
    del state["decoder_blocks.1.attn.proj.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["cond_tokens"] = torch.zeros(1, 4, 16)
    state["diffloss.net.final_layer.linear.bias"] = torch.zeros(16)
    with pytest.raises(CheckpointKeyError) as caught:
        load_himar(saved(tmp_path, state), **HEADS)
    error = caught.value
    assert error.missing == ("decoder_blocks.1.attn.proj.weight",)
    assert error.unexpected == ("extra.weight",)
    assert error.misshapen == {
        "cond_tokens": ((1, 4, 16), (1, 16, 16)),
        "diffloss.net.final_layer.linear.bias": ((16,), (32,)),
    }
    assert "final_layer.linear.bias: found [16], expected [32]" in str(error)


@pytest.mark.parametrize("name", ["mask_token", "cond_diffloss.net.pos_embed"])
def test_missing_keys_that_tell_sizes(tmp_path: Path, name: str) -> None:
    state = himar_state()
    del state[name]
    with pytest.raises(CheckpointKeyError, match=f"tell the model's size: {name}$"):
        load_himar(saved(tmp_path, state), **HEADS)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cond_diffloss.net.pos_embed", (1, 63, 64), "17 pivots are no square grid"),
        ("mask_token", (1, 128, 64), "pivot_side must be at least 4, got 0"),
        ("mask_token", (160,), "out of range"),
    ],
)
def test_sizes_that_do_not_fit_together(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    state = himar_state() | {name: torch.zeros(shape)}
    with pytest.raises(CheckpointValueError, match=rf"inconsistent sizes \(.*{message}"):
        load_himar(saved(tmp_path, state), **HEADS)


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    with pytest.raises(CheckpointValueError, match="64 is not a multiple of decoder_heads 3"):
        load_himar(saved(tmp_path, himar_state()), decoder_heads=3)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = himar_state()
    state["encoder_blocks.1.adaLN_scale"][1, 0, 0, 7] = float("nan")
    with pytest.raises(CheckpointValueError, match=r"encoder_blocks\.1\.adaLN_scale"):
        load_himar(saved(tmp_path, state), **HEADS)


def test_autoencoder_without_a_level(tmp_path: Path) -> None:
    state = {k: v for k, v in vae_state().items() if not k.startswith("encoder.down.")}
    with pytest.raises(CheckpointKeyError, match=r"encoder\.down\.0\.block\.0\.conv2\.weight"):
        load_kl_vae(saved(tmp_path, state))


def test_autoencoder_with_another_attention(tmp_path: Path) -> None:
    state = {k.replace("attn_1.q.", "attn_1.qkv."): v for k, v in vae_state().items()}
    with pytest.raises(CheckpointKeyError) as caught:
        load_kl_vae(saved(tmp_path, state))
    assert "encoder.mid.attn_1.q.weight" in caught.value.missing
    assert "encoder.mid.attn_1.qkv.weight" in caught.value.unexpected


def test_autoencoder_of_other_tokens(tmp_path: Path) -> None:
    with torch.device("meta"):
        vae = KLVAE(KLVAEConfig(latent_channels=4))
    with pytest.raises(CheckpointValueError, match=r"its latents have 4 channels.* with 16"):
        check_himar_pair(TINY.model, vae)
    check_himar_pair(TINY.model, TINY.vae)


# --- the other family -----------------------------------------------------------------------------


def test_files_of_the_other_family(tmp_path: Path) -> None:
    hmar_config = Case("tiny").config
    hmar, tokenizer = (write_pth(tmp_path, kind, hmar_config) for kind in ("hmar", "vae"))
    himar = saved(tmp_path, as_published(himar_state()))
    autoencoder = saved(tmp_path, {"model": vae_state()}, "kl16.ckpt")
    patch_nums = hmar_config["patch_nums"]
    for load, wanted, found, hint in (
        (lambda: load_hmar([himar]), "HMAR", "Hi-MAR", "goes with a KL autoencoder"),
        (lambda: load_himar(hmar), "Hi-MAR", "HMAR", r"goes with a tokenizer \(VQVAE\)"),
        (
            lambda: load_tokenizer(autoencoder, patch_nums),
            "tokenizer",
            "KL autoencoder",
            "goes with a Hi-MAR transformer",
        ),
        (
            lambda: load_kl_vae(tokenizer),
            "KL autoencoder",
            "tokenizer",
            "goes with an HMAR transformer",
        ),
        (lambda: load_himar(autoencoder), "Hi-MAR", "KL autoencoder", "a Hi-MAR transformer"),
        (lambda: load_kl_vae(himar), "KL autoencoder", "Hi-MAR", "a KL autoencoder$"),
    ):
        with pytest.raises(
            CheckpointReadError, match=f"of kind {wanted}.*, found {found} .*{hint}"
        ):
            load()


def test_many_unknown_state_dicts_are_cut(tmp_path: Path) -> None:
    state = {"optimizer": {i: {"exp_avg": torch.zeros(2)} for i in range(40)}}
    with pytest.raises(CheckpointReadError, match=r"e.g. 'exp_avg'\) and 37 more$"):
        load_himar(saved(tmp_path, state))
