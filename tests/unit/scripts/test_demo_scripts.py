"""Scripts around the demo checkpoint, without the artwork itself."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmar.training.parts import CLASS_NAMES, PartPack
from hmar.training.render import Renderer
from scripts.robohash import CLASS_FOLDERS, pack_wheel

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = (
    "pack_demo_data.py",
    "train_demo.py",
    "sample_demo.py",
    "sweep_demo.py",
    "evaluate_demo.py",
)


def png(rgba: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), rgba).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel whose classes have a red body below a half-transparent blue face."""
    path = tmp_path / "robohash.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder in CLASS_FOLDERS:
            # listed first, painted last: the order is the number after the '#'
            archive.writestr(f"robohash/sets/{folder}/000#02Face/000#a.png", png((0, 0, 255, 128)))
            archive.writestr(f"robohash/sets/{folder}/001#01Body/000#b.png", png((255, 0, 0, 255)))
        archive.writestr("robohash/sets/set5/000#Body/000#c.png", png((9, 9, 9, 255)))
        for i in range(6):
            archive.writestr(f"robohash/backgrounds/bg1/00{i}#d.png", png((0, 255, 0, 255)))
    return path


def test_parts_are_painted_in_the_order_after_the_hash(wheel: Path) -> None:
    pack = pack_wheel(wheel, side_px=4)
    assert pack.parts.shape == (1 + 2 * len(CLASS_NAMES), 4, 4, 4)
    image, _ = Renderer(pack, torch.device("cpu"), 0).batch(13)
    red, green, blue = ((image[:, :, 0, 0] + 1) * 127.5).round().T.tolist()
    assert set(red) == {127} and set(green) == {0} and set(blue) == {128}


def test_a_wheel_without_a_class(tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("robohash/backgrounds/bg1/000#d.png", png((0, 255, 0, 255)))
    with pytest.raises(ValueError, match="no parts under sets/set1/blue"):
        pack_wheel(path, side_px=4)


def test_packs_round_trip(wheel: Path, tmp_path: Path) -> None:
    pack = pack_wheel(wheel, side_px=4)
    pack.save(tmp_path / "parts.npz")
    again = PartPack.load(tmp_path / "parts.npz")
    for name in ("parts", "slots", "backgrounds"):
        assert np.array_equal(getattr(pack, name), getattr(again, name))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_teaches(script: str) -> None:
    command = [sys.executable, f"scripts/{script}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{script} " in done.stdout, "an example to copy"
