"""Hi-MAR-B and its autoencoder at their real size, and all golden generations with every array.

    python -m pytest tests/slow/test_himar_full_size.py --slow --himar-golden-dir DIR

DIR holds the golden files of Hi-MAR. Takes about eight minutes and 2 GB of disk on two cores.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hmar.config import HIMAR_PRESETS
from hmar.himar_checkpoint import check_himar_pair, load_himar, load_kl_vae
from tests.himar_golden import HiMARCase, compare_generation, published_state, run_reference
from tests.himar_module_check import (
    check_dit_denoiser,
    check_mlp_denoiser,
    check_transformer,
    check_vae,
)

pytestmark = pytest.mark.slow
TINY = ("nocfg", "linear", "constant", "iter1", "iter12", "only_cfg", "only_re_cfg", "unlabelled")


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--himar-golden-dir")
    if folder is None:
        pytest.skip("give the folder of Hi-MAR's golden traces: --himar-golden-dir DIR")
    return folder


@pytest.mark.parametrize(
    "name", [*(f"tiny_a.{t}" for t in TINY), "narrow.long", "narrow.published"]
)
def test_small_generation(folder: Path, name: str) -> None:
    case = HiMARCase(name, folder)
    compare_generation(case, run_reference(case))


def test_autoencoder(folder: Path) -> None:
    check_vae(HiMARCase("vae_kl16", folder))


def test_base_modules(folder: Path) -> None:
    case = HiMARCase("base.modules", folder)
    check_transformer(case)
    check_mlp_denoiser(case)
    check_dit_denoiser(case)


def test_base_generation(folder: Path) -> None:
    case = HiMARCase("base.trace", folder)
    compare_generation(case, run_reference(case))


def test_base_checkpoint(folder: Path, tmp_path: Path) -> None:
    case = HiMARCase("base.trace", folder)
    state = published_state("himar_base", case.json["weight_seed"], folder)
    torch.save({"model_ema": state, "epoch": 799}, tmp_path / "checkpoint-last.pth")
    vae = published_state("vae_kl16", case.json["vae_seed"], folder)
    torch.save({"model": vae}, tmp_path / "kl16.ckpt")
    model = load_himar(tmp_path / "checkpoint-last.pth")
    check_himar_pair(model, load_kl_vae(tmp_path / "kl16.ckpt"))
    assert model.config == HIMAR_PRESETS["himar-base-256"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name]), name
