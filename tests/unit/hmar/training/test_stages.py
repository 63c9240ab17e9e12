"""A few steps of every training stage on synthetic parts, and what the stages are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmar.checkpoint import load_hmar, load_tokenizer
from hmar.config import HMARConfig, TokenizerConfig
from hmar.training.config import LoopConfig, TransformerLossConfig
from hmar.training.demo import (
    PreviewConfig,
    RunFiles,
    train_masked,
    train_next_scale,
    train_tokenizer,
)
from hmar.training.errors import StateError
from hmar.training.parts import PartPack

PATCH_NUMS = (1, 2, 4)
TOKENIZER = TokenizerConfig(
    vocab_size=32, latent_channels=8, base_channels=32, channel_mult=(1, 1, 1), num_res_blocks=1
)
TINY = HMARConfig(
    depth=2, branch_layers=1, embed_dim=64, num_heads=1, patch_nums=PATCH_NUMS,
    num_classes=3, vocab_size=32, latent_channels=8, shared_aln=True,
)  # fmt: skip
LOOP = LoopConfig(
    steps=3, batch_size=6, lr=1e-3, warmup_steps=1, log_every=1, device="cpu", is_compiled=False
)
LOSSES = TransformerLossConfig(class_weights=(1.0, 1.0, 3.0))
PREVIEW = PreviewConfig(num_reconstructions=4, samples_per_class=1, top_k=8, top_p=0.9)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of three classes with two slots each, 16 px, and six backgrounds."""
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 256, (9, 16, 16, 4), dtype=np.uint8)
    parts[..., :3] = np.minimum(parts[..., :3], parts[..., 3:])
    parts[0] = 0
    slots = np.array([[[1, 2], [3, 1]], [[4, 1], [0, 1]], [[5, 2], [7, 2]]], np.int32)
    backgrounds = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("data") / "parts.npz"
    PartPack(parts=parts, slots=slots, backgrounds=backgrounds).save(path)
    return path


@pytest.fixture(scope="session")
def tokenizer_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(RunFiles(data=data, out=out), TOKENIZER, PATCH_NUMS, LOOP, PREVIEW)
    return out


@pytest.fixture(scope="session")
def next_scale_run(
    data: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("next-scale")
    files = RunFiles(data=data, out=out, init_from=tokenizer_run)
    train_next_scale(files, TINY, LOOP, LOSSES, PREVIEW)
    (out / "tokenizer.safetensors").write_bytes(
        (tokenizer_run / "tokenizer.safetensors").read_bytes()
    )
    return out


def test_tokenizer_stage_writes_a_loadable_tokenizer(tokenizer_run: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_run / "tokenizer.safetensors", PATCH_NUMS)
    assert tokenizer.config == TOKENIZER
    assert (tokenizer_run / "reconstructions_train.png").is_file()
    assert (tokenizer_run / "reconstructions_held_out.png").is_file()


def test_next_scale_stage_writes_a_loadable_model(next_scale_run: Path) -> None:
    assert load_hmar([next_scale_run / "hmar.safetensors"]).config == replace(
        TINY, has_mask_branch=False
    )
    assert (next_scale_run / "samples.png").is_file()


def test_masked_stage_trains_the_masked_branch_only(
    data: Path, next_scale_run: Path, tmp_path: Path
) -> None:
    files = RunFiles(data=data, out=tmp_path, init_from=next_scale_run)
    train_masked(files, LOOP, LOSSES, PREVIEW)
    before = load_hmar([next_scale_run / "hmar.safetensors"]).state_dict()
    model = load_hmar([tmp_path / "hmar.safetensors"])
    after = model.state_dict()
    assert model.config == TINY
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    assert not torch.equal(after["mask_head.weight"], after["ns_head.weight"])
    assert (tmp_path / "samples_masked.png").is_file()


def test_a_resumed_stage_goes_on_from_its_state(
    data: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    files = RunFiles(data=data, out=tmp_path, resume=tokenizer_run)
    # with a learning rate of zero the weights stay those of the first run
    train_tokenizer(files, TOKENIZER, PATCH_NUMS, replace(LOOP, lr=0.0, steps=1), PREVIEW)
    first = load_tokenizer(tokenizer_run / "tokenizer.safetensors", PATCH_NUMS).state_dict()
    second = load_tokenizer(tmp_path / "tokenizer.safetensors", PATCH_NUMS).state_dict()
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], atol=5e-3), name


def test_resuming_without_state_files_says_so(data: Path, tmp_path: Path) -> None:
    files = RunFiles(data=data, out=tmp_path / "out", resume=tmp_path)
    with pytest.raises(StateError, match="no tokenizer-NN"):
        train_tokenizer(files, TOKENIZER, PATCH_NUMS, LOOP, PREVIEW)


def test_a_stage_says_which_published_file_it_needs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"masked stage needs hmar\.safetensors"):
        train_masked(RunFiles(data=data, out=tmp_path), LOOP, LOSSES, PREVIEW)
