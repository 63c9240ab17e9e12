"""Checkpoint files: what is understood without flags, and what is refused with which message."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hmar.checkpoint import (
    check_pair,
    infer_hmar_config,
    infer_tokenizer_config,
    load_hmar,
    load_tokenizer,
)
from hmar.config import HIMAR_PRESETS, PRESETS, preset_name
from hmar.errors import CheckpointKeyError, CheckpointReadError, CheckpointValueError
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from tests.cases import tiny_variant
from tests.checkpoints import state_dict, write_pth
from tests.golden_data import GOLDEN, Case

TINY, STAGES = Case("tiny"), Case("tiny_stages")
KEYS = GOLDEN / "hmar" / "keys"
State = dict[str, torch.Tensor]


def hmar_state() -> State:
    return state_dict("hmar", TINY.config, TINY.config["hmar_seed"])


def saved(folder: Path, obj: Any, name: str = "c.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(obj, path)
    else:
        torch.save(obj, path)
    return path


def layout(name: str) -> State:
    """A published layout as empty tensors; buffers that tell sizes have their values."""
    data = json.loads((KEYS / f"{name}.json").read_text())
    state = {k: torch.empty(shape, device="meta") for k, (shape, _) in data["state_dict"].items()}
    if "lvl_1L" in state:
        counts = [pn * pn for pn in data["config"]["patch_nums"]]
        state["lvl_1L"] = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[
            None
        ]
    return state


# --- understood -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["d16", "d20", "d24", "d30", "d16-512", "d36-s-512"])
def test_published_layouts_are_the_presets(size: str) -> None:
    state = layout(f"hmar-{size}")
    config = infer_hmar_config(state, size)
    assert preset_name(config) == f"hmar-{size}" + ("" if size.endswith("512") else "-256")
    with torch.device("meta"):
        parameters = {n: tuple(p.shape) for n, p in HMAR(config).named_parameters()}
    derived = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
    assert parameters == {n: tuple(t.shape) for n, t in state.items() if not n.endswith(derived)}


def test_presets_cover_both_resolutions() -> None:
    sizes = ("d16", "d20", "d24", "d30", "d36-s")
    hmar = {f"hmar-{size}-{px}" for size in sizes for px in (256, 512)}
    assert set(PRESETS) == hmar | set(HIMAR_PRESETS)


@pytest.mark.parametrize("name", ["vqvae-vae_ch160v4096z32", "vqvae-vae_ch160v4096z32-512"])
def test_published_tokenizer_layout(name: str) -> None:
    state = layout(name)
    with torch.device("meta"):
        model = VQVAE(infer_tokenizer_config(state, name), (1, 2))
    expected = {n: tuple(t.shape) for n, t in state.items() if not n.endswith("ema_vocab_hit_SV")}
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == expected


@pytest.mark.parametrize("variant", ["plain", "shared-aln", "no-l2-norm", "five-scales"])
def test_sizes_are_inferred(tmp_path: Path, variant: str) -> None:
    case = tiny_variant(variant)
    model = load_hmar([write_pth(tmp_path, "hmar", case.config)])
    assert model.config == case.hmar_config
    for (name, ours), (_, expected) in zip(
        model.named_parameters(), case.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, expected), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "epoch": 3},
        lambda s: {
            "trainer": {"hmar": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"step": 1}}
        },
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["model", "nested", "prefixed", "half"],
)
def test_wrapped_state_dicts(tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    model = load_hmar([saved(tmp_path, wrap(hmar_state()))])
    assert model.config == TINY.hmar_config and model.pos_start.dtype == torch.float32


def test_safetensors(tmp_path: Path) -> None:
    assert load_hmar([saved(tmp_path, hmar_state(), "c.safetensors")]).config == TINY.hmar_config


def test_stage_files_merge_to_the_golden_tensors(tmp_path: Path) -> None:
    model = load_hmar([write_pth(tmp_path, kind, STAGES.config) for kind in ("mp", "nsp")])
    assert model.config == STAGES.hmar_config
    parameters = dict(model.named_parameters())
    digests = STAGES.json["merged_sha256"]
    assert set(parameters) == set(digests)
    for name, digest in digests.items():
        assert sha256_16(parameters[name]) == digest, name


def sha256_16(tensor: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy(), "<f4").tobytes()).hexdigest()[:16]


def test_frozen_copies_tell_the_branch_layers(tmp_path: Path) -> None:
    nsp, mp = (
        state_dict(kind, STAGES.config, STAGES.config[f"{kind}_seed"]) for kind in ("nsp", "mp")
    )
    frozen = {k: v for k, v in nsp.items() if k.startswith(("blocks.0.", "blocks.1.", "blocks.2."))}
    paths = [saved(tmp_path, nsp, "nsp.pth"), saved(tmp_path, {**mp, **frozen}, "mp.pth")]
    assert load_hmar(paths).config.branch_layers == 1
    assert load_hmar(paths, branch_layers=3).config.branch_layers == 3


def test_next_scale_stage_alone_has_no_masked_branch(tmp_path: Path) -> None:
    model = load_hmar([write_pth(tmp_path, "nsp", STAGES.config)])
    assert not model.config.has_mask_branch and model.config.depth == 4


# --- refused ------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_keys_in_one_error(tmp_path: Path) -> None:
    state = hmar_state()
    del state["ns_blocks.0.attn.proj.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["mask_embed.weight"] = torch.zeros(3, 5)
    with pytest.raises(CheckpointKeyError) as caught:
        load_hmar([saved(tmp_path, state)])
    error, text = caught.value, str(caught.value)
    assert error.missing == ("ns_blocks.0.attn.proj.weight",)
    assert error.unexpected == ("extra.weight",)
    assert error.misshapen == {"mask_embed.weight": ((3, 5), (1, 256))}
    for part in (
        "missing (1)",
        "unexpected (1)",
        "misshapen (1)",
        "found [3, 5], expected [1, 256]",
    ):
        assert part in text


def test_long_lists_are_cut(tmp_path: Path) -> None:
    state = {k: v for k, v in hmar_state().items() if "ffn" not in k}
    with pytest.raises(CheckpointKeyError, match=r"… and 18 more") as caught:
        load_hmar([saved(tmp_path, state)])
    assert len(caught.value.missing) == 24


def test_missing_keys_that_tell_sizes(tmp_path: Path) -> None:
    state = hmar_state()
    del state["pos_1LC"]
    with pytest.raises(
        CheckpointKeyError, match="missing keys that tell the model's size: pos_1LC"
    ):
        load_hmar([saved(tmp_path, state)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_or_absurd(tmp_path: Path, value: float) -> None:
    state = hmar_state()
    state["base_blocks.1.ffn.fc1.weight"][3, 4] = value
    with pytest.raises(CheckpointValueError, match=r"base_blocks\.1\.ffn\.fc1\.weight"):
        load_hmar([saved(tmp_path, state)])


def test_key_bias_is_not_supported(tmp_path: Path) -> None:
    state = hmar_state()
    state["base_blocks.0.attn.zero_k_bias"][0] = 1
    with pytest.raises(CheckpointValueError, match="zero_k_bias must be zero"):
        load_hmar([saved(tmp_path, state)])


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain-pickle"])
def test_a_pickle_that_would_run_code(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    if legacy:
        path.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    else:
        torch.save({**hmar_state(), "hook": Evil(marker)}, path)
    with pytest.raises(CheckpointReadError, match=r"would run code|not a checkpoint"):
        load_hmar([path])
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated(tmp_path: Path, suffix: str, keep: float) -> None:
    path = saved(tmp_path, hmar_state(), f"c{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(CheckpointReadError, match=r"download it again|not a checkpoint"):
        load_hmar([path])


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_flipped_bit_in_pth(tmp_path: Path, place: float) -> None:
    path = saved(tmp_path, hmar_state())
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointReadError, match="download it again"):
        load_hmar([path])


def test_flipped_bit_in_the_header_of_safetensors(tmp_path: Path) -> None:
    path = saved(tmp_path, hmar_state(), "c.safetensors")
    data = bytearray(path.read_bytes())
    data[3] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointReadError, match="download it again"):
        load_hmar([path])


def test_flipped_exponent_bit_in_safetensors(tmp_path: Path) -> None:
    path = saved(tmp_path, hmar_state(), "c.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # the last byte of a float32 holds the high bits of its exponent
    path.write_bytes(data)
    with pytest.raises(CheckpointValueError, match="not finite or beyond"):
        load_hmar([path])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checksum_file_beside_the_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, hmar_state(), f"c{suffix}")
    sidecar = path.with_name(path.name + ".sha256")
    sidecar.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert load_hmar([path]).config == TINY.hmar_config
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # a mantissa bit: no other check can see it in a safetensors file
    path.write_bytes(data)
    with pytest.raises(CheckpointReadError, match=r"\.sha256"):
        load_hmar([path])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointReadError, match="no such file"):
        load_hmar([tmp_path / "missing.pth"])


def test_tokenizer_in_place_of_the_transformer(tmp_path: Path) -> None:
    vae, hmar = (write_pth(tmp_path, kind, TINY.config) for kind in ("vae", "hmar"))
    with pytest.raises(
        CheckpointReadError, match=r"expected a checkpoint of kind HMAR .* found tokenizer"
    ):
        load_hmar([vae])
    with pytest.raises(
        CheckpointReadError, match="expected a checkpoint of kind tokenizer, found HMAR"
    ):
        load_tokenizer(hmar, TINY.config["patch_nums"])


@pytest.mark.parametrize(
    ("change", "message"), [({"V": 32}, "vocabulary size"), ({"Cvae": 16}, "latent channels")]
)
def test_wrong_tokenizer(tmp_path: Path, change: dict[str, int], message: str) -> None:
    tokenizer = load_tokenizer(
        write_pth(tmp_path, "vae", {**TINY.config, **change}), TINY.config["patch_nums"]
    )
    with pytest.raises(CheckpointValueError, match=f"wrong tokenizer: its {message}"):
        check_pair(TINY.model, tokenizer)


def test_tokenizer_trained_with_other_scales(tmp_path: Path) -> None:
    path = write_pth(tmp_path, "vae", {**TINY.config, "patch_nums": [1, 2, 4]})
    with pytest.raises(
        CheckpointKeyError, match=r"ema_vocab_hit_SV: found \[3, 64\], expected \[4, 64\]"
    ):
        load_tokenizer(path, TINY.config["patch_nums"])


def test_masked_stage_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointValueError, match="add the next-scale stage"):
        load_hmar([write_pth(tmp_path, "mp", STAGES.config)])


def test_merged_file_with_a_second_one(tmp_path: Path) -> None:
    paths = [
        write_pth(tmp_path, kind, STAGES.config | {"hmar_seed": 1}) for kind in ("hmar", "nsp")
    ]
    with pytest.raises(CheckpointValueError, match="needs no second checkpoint"):
        load_hmar(paths)


def test_something_else(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointReadError, match=r"an unknown layout \(1 tensors, e.g. 'weight'\)"
    ):
        load_hmar([saved(tmp_path, {"weight": torch.zeros(1)})])
    with pytest.raises(CheckpointReadError, match="found no tensors"):
        load_hmar([saved(tmp_path, {"epoch": 3})])
