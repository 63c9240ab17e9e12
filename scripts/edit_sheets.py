"""Contact sheets of what the demo checkpoint edits: regions, classes, variations; and a strip.

The pictures are real renders of classes spread over all, from one seed, not picked.

example:
  python scripts/edit_sheets.py --bundle out/demo --data parts.npz --out docs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageDraw

from hmar.training.demo import EVALUATION_SEED
from hmar.training.parts import PartPack
from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.regions import blend
from scripts.cli import parser, run
from scripts.edit_tasks import (
    FEATHER_PX,
    TASKS,
    VARIANTS,
    VARIATIONS,
    Task,
    sampling_for,
    shown,
)
from scripts.images import check_writable, with_captions
from scripts.judging import render_set
from scripts.previews import Previews

COLUMNS = (0, 3, 4, 7, 9, 10, 11, 12)  # classes: robots of five colours, cyborg, robohead, cat
STRIP_LABELS = (2, 8, 10, 12)
MARGIN_PX = 150
JPEG_QUALITY = 85


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="of the demo")
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the sheets")
    p.add_argument("--seed", type=int, default=0, help="of the edits")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="library and device")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    return p.parse_args()


def task_rows(
    pipeline: Pipeline, task: Task, images: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Rows of pictures by caption: given, what is kept, and every variant."""
    targets = task.targets(COLUMNS, pipeline.manifest.hmar.num_classes)
    given = task.given(images)
    rows = {"picture": images, "kept": shown(images, task.keep)}
    for name, edit in VARIANTS.items():
        rows[name] = pipeline.edit(given, task.keep, targets, edit=edit, seed=seed)
    keep = np.broadcast_to(task.keep, images.shape[:3])
    blended = blend(rows[name], images, keep, FEATHER_PX)
    rows["the same, blended"] = with_captions(blended, [pipeline.class_names[t] for t in targets])
    return rows


def variation_rows(pipeline: Pipeline, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Rows of variations of whole pictures, by caption."""
    nothing = np.zeros(images.shape[1:3], np.bool_)
    rows = {"picture": images}
    for name, edit in VARIATIONS.items():
        rows[name] = pipeline.edit(
            images, nothing, COLUMNS, edit=edit, seed=seed, sampling=sampling_for(pipeline, edit)
        )
    return rows


def strip_rows(pipeline: Pipeline, seed: int) -> dict[str, np.ndarray]:
    """The reconstruction after every scale of generated pictures, by class."""
    previews = Previews(strip=Path("unused.png"), animation=None)
    pipeline.generate(STRIP_LABELS, seed=seed, on_scale=previews)
    names = [pipeline.class_names[label] for label in STRIP_LABELS]
    return dict(zip(names, previews.images(), strict=True))


def sheet(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of pictures (B, H, W, 3) below each other, with captions on the left."""
    parts = []
    for caption, images in rows.items():
        margin = Image.new("RGB", (MARGIN_PX, images.shape[1]), "white")
        ImageDraw.Draw(margin).text((4, 4), caption, fill="black")
        parts.append(np.concatenate((np.asarray(margin), *images), axis=1))
    return np.concatenate(parts)


def main() -> None:
    args = parse_args()
    check_writable(args.out / "sheet.jpg")
    pack = PartPack.load(args.data)
    real = render_set("real", pack, 2 * pack.num_classes, EVALUATION_SEED + 6, "cpu")
    images = np.stack([real.images[real.labels == label][0] for label in COLUMNS])
    with Pipeline.load(args.bundle, args.backend, threads=args.threads) as pipeline:
        sheets = {task.name: task_rows(pipeline, task, images, args.seed) for task in TASKS}
        sheets["variations"] = variation_rows(pipeline, images, args.seed)
        sheets["strip"] = strip_rows(pipeline, args.seed)
    for name, rows in sheets.items():
        path = args.out / f"edit-{name}.jpg"
        Image.fromarray(sheet(rows)).save(path, quality=JPEG_QUALITY)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    run(main, DeployError, OSError)
