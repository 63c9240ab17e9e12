"""Checkpoint files of both families: what is recognised, and what is refused with which message."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from export import ExportConfig, ExportError, OutputError, export_bundle
from export import writer as writer_module
from export.families import load_family
from hmar.errors import (
    CheckpointError,
    CheckpointKeyError,
    CheckpointReadError,
    CheckpointValueError,
)
from tests.cases import write_files
from tests.golden_data import Case
from tests.himar_checkpoints import CASES, write_himar, write_kl_vae

HEADS = CASES["tiny_a"].num_heads


@dataclass(frozen=True)
class Files:
    """One transformer and one autoencoder of each family."""

    hmar: Path
    tokenizer: Path
    himar: Path
    kl_vae: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    hmar = write_files(folder, Case("tiny"))
    himar, kl_vae = write_himar(folder, "tiny_a"), write_kl_vae(folder, "tiny_a")
    return Files(hmar.ckpt[0], hmar.vae, himar, kl_vae)


def test_families_are_told_by_the_keys(files: Files) -> None:
    hmar = load_family([files.hmar], files.tokenizer)
    assert hmar.name == "hmar" and hmar.description == "HMAR depth 4, width 256, 64 px, 10 classes"
    himar = load_family([files.himar], files.kl_vae, num_heads=HEADS)
    assert himar.name == "himar" and himar.description == (
        "Hi-MAR depth 2+2, width 64, 128 px, 10 classes, 4 dense steps"
    )


def test_a_link_with_an_odd_name(files: Files, tmp_path: Path) -> None:
    link = tmp_path / "last — best (ema) ü.pth"
    link.symlink_to(files.himar)
    assert load_family([link], files.kl_vae, num_heads=HEADS).name == "himar"


# --- files that do not belong together ------------------------------------------------------------


def test_autoencoder_of_the_other_family(files: Files) -> None:
    with pytest.raises(
        CheckpointReadError,
        match=r"kind KL autoencoder, found tokenizer .*goes with an HMAR transformer$",
    ):
        load_family([files.himar], files.tokenizer, num_heads=HEADS)
    with pytest.raises(
        CheckpointReadError,
        match=r"kind tokenizer, found KL autoencoder .*goes with a Hi-MAR transformer$",
    ):
        load_family([files.hmar], files.kl_vae)


def test_swapped_files(files: Files) -> None:
    with pytest.raises(CheckpointReadError, match="or Hi-MAR, found KL autoencoder"):
        load_family([files.kl_vae], files.himar)


def test_a_second_file(files: Files) -> None:
    with pytest.raises(CheckpointValueError, match="a second Hi-MAR file"):
        load_family([files.himar, files.himar], files.kl_vae)
    with pytest.raises(CheckpointValueError, match="a Hi-MAR file needs no second checkpoint"):
        load_family([files.himar, files.hmar], files.kl_vae)


def test_options_of_the_other_family(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="branch_layers is for stages of HMAR"):
        load_family([files.himar], files.kl_vae, branch_layers=2)
    with pytest.raises(ValueError, match=r"three numbers for Hi-MAR .* got \[4\]"):
        load_family([files.himar], files.kl_vae, num_heads=(4,))
    with pytest.raises(ValueError, match=r"one number for HMAR, got \[4, 2, 4\]"):
        load_family([files.hmar], files.tokenizer, num_heads=HEADS)
    with pytest.raises(ExportError, match="num_iter is a setting of Hi-MAR"):
        export_bundle(
            ExportConfig(), [files.hmar], files.tokenizer, tmp_path / "bundle", num_iter=4
        )


# --- damaged files: nothing is written ------------------------------------------------------------


def truncated(path: Path, data: Any) -> None:
    torch.save(data, path)
    path.write_bytes(path.read_bytes()[:-1000])


def text(path: Path, data: Any) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path, Any], None]:
    """Writes the file with changed averages."""

    def write(path: Path, data: Any) -> None:
        change(data["model_ema"])
        torch.save(data, path)

    return write


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (truncated, CheckpointReadError, "download it again"),
        (text, CheckpointReadError, "refused, since loading it would run code or it is not"),
        (
            changed(lambda s: s.pop("decoder_norm.bias")),
            CheckpointKeyError,
            r"missing \(1\):\n    decoder_norm.bias \[64\]",
        ),
        (
            changed(lambda s: s.update(z_proj_ln=torch.zeros(3))),
            CheckpointKeyError,
            r"unexpected \(1\):\n    z_proj_ln \[3\]",
        ),
        (
            changed(lambda s: s.update({"decoder_norm.bias": torch.zeros(63)})),
            CheckpointKeyError,
            r"decoder_norm.bias: found \[63\], expected \[64\]",
        ),
        (
            changed(lambda s: s["fake_latent"].fill_(float("nan"))),
            CheckpointValueError,
            "not finite or beyond .*: fake_latent",
        ),
        (
            changed(lambda s: s.update({"z_proj.bias": s["z_proj.bias"].to(torch.int8)})),
            CheckpointValueError,
            r"not floating-point numbers: z_proj.bias \(int8\); quantized",
        ),
    ],
    ids=["truncated", "text", "missing", "unexpected", "misshapen", "nan", "int8"],
)
def test_damaged_himar_files(
    files: Files,
    tmp_path: Path,
    write: Callable[[Path, Any], None],
    error: type[CheckpointError],
    message: str,
) -> None:
    data = torch.load(files.himar, weights_only=False)
    path, out = tmp_path / "himar.pth", tmp_path / "out" / "bundle"
    write(path, data)
    with pytest.raises(error, match=message):
        export_bundle(ExportConfig(), [path], files.kl_vae, out, num_heads=HEADS)
    assert not out.parent.exists()


def test_too_little_space_for_himar(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(OutputError, match="the bundle needs 86 MB, 0 MB are free"):
        export_bundle(
            ExportConfig(), [files.himar], files.kl_vae, tmp_path / "bundle", num_heads=HEADS
        )
    assert list(tmp_path.iterdir()) == []
