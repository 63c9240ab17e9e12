"""The artwork of the robohash wheel (PyPI, version 2.0) as packed parts.

The wheel holds RGBA parts by Zikri Kader (set1, backgrounds), Hrvoje Novakovic (set2), Julian Peter
Arias (set3) and David Revoy (set4), all CC-BY. A picture is one random part of every slot of a
class, painted in slot order over a background. `set5` is not CC-BY and is left out.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hmar.training.parts import COLORS, PartPack

CLASS_FOLDERS = (*(f"set1/{color}" for color in COLORS), "set2", "set3", "set4")


def pack_wheel(wheel: Path, side_px: int) -> PartPack:
    """Parts and backgrounds of the robohash wheel, reduced to `side_px`.

    Raises:
        ValueError: the archive lacks the parts of a class.
    """
    parts: list[np.ndarray] = [np.zeros((side_px, side_px, 4), np.uint8)]
    slots: list[list[tuple[int, int]]] = []
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))
        for folder in CLASS_FOLDERS:
            class_slots = []
            for slot_names in _slots(names, f"robohash/sets/{folder}/"):
                class_slots.append((len(parts), len(slot_names)))
                parts += [_read_premultiplied(archive, name, side_px) for name in slot_names]
            if not class_slots:
                raise ValueError(
                    f"{wheel}: no parts under sets/{folder}; expected the wheel robohash 2.0"
                )
            slots.append(class_slots)
        backgrounds = [
            _over_white(_read_premultiplied(archive, name, side_px))
            for name in names
            if name.startswith("robohash/backgrounds/")
        ]
    depth = max(len(s) for s in slots)
    padded = [s + [(0, 1)] * (depth - len(s)) for s in slots]
    return PartPack(
        parts=np.stack(parts), slots=np.array(padded, np.int32), backgrounds=np.stack(backgrounds)
    )


def _slots(names: list[str], prefix: str) -> Iterator[list[str]]:
    """File names of every slot below `prefix`, in painting order: by the folder name after '#'."""
    folders = {n[len(prefix) :].split("/")[0] for n in names if n.startswith(prefix)}
    for folder in sorted(
        (f for f in folders if re.match(r"\d+#", f)), key=lambda f: f.split("#")[1]
    ):
        yield [n for n in names if n.startswith(f"{prefix}{folder}/")]


def _read_premultiplied(archive: zipfile.ZipFile, name: str, side_px: int) -> np.ndarray:
    image = Image.open(io.BytesIO(archive.read(name))).convert("RGBA").convert("RGBa")
    rgba = np.asarray(image.resize((side_px, side_px), Image.Resampling.LANCZOS))
    return np.concatenate((np.minimum(rgba[..., :3], rgba[..., 3:]), rgba[..., 3:]), axis=-1)


def _over_white(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., :3] + (255 - rgba[..., 3:])
