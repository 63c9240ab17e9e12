"""Rank pictures under classes by the likelihood of their tokens: classification without training.

Each picture is encoded once and scored under every class in one pass of the next-scale head, in
batches. Pictures of any size are resized to the model's, and padded to a square.

examples:
  python scripts/score.py --bundle bundles/hmar-d16 --labels 207,208,88 a.png b.jpg
  python scripts/score.py --bundle out/demo --json scores.json folder/*.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.scoring import Ranking, rank
from scripts.cli import ProgressBar, joined, parse_placement, parser, run
from scripts.generate import parse_labels
from scripts.images import check_writable
from scripts.pictures import read_picture


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="pictures to rank")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle folder")
    p.add_argument("--labels", metavar="L,L,…", help="classes to compare (default: all)")
    p.add_argument("--top", type=int, default=3, metavar="N", help="classes to print per picture")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write all figures, by scale")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="library and device")
    p.add_argument("--place", metavar="KIND=BACKEND,…", help="see scripts/generate.py")
    p.add_argument("--engines", type=Path, metavar="DIR", help="see scripts/generate.py")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    p.add_argument("--max-batch", type=int, default=8, help="classes in one pass")
    return p.parse_args(joined(sys.argv[1:], "--labels"))


def lines(paths: list[Path], ranking: Ranking, names: list[str], top: int) -> list[str]:
    """Per picture, the best classes with their probability and log-likelihood."""
    result = []
    for path, order, p, total in zip(
        paths, ranking.order, ranking.posterior, ranking.totals, strict=True
    ):
        best = (f"{names[c]} {p[c]:.3f} ({total[c]:.1f})" for c in order[:top])
        result.append(f"{path}: {', '.join(best)}")
    return result


def write_json(path: Path, paths: list[Path], ranking: Ranking, names: list[str]) -> None:
    report = [
        {"image": str(image), "log_likelihood": dict(zip(names, values.tolist(), strict=True))}
        for image, values in zip(paths, ranking.log_likelihood, strict=True)
    ]
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    args = parse_args()
    if args.top < 1:
        raise ValueError(f"--top must be >= 1, got {args.top}")
    if args.json is not None:
        check_writable(args.json)
    with (
        Pipeline.load(
            args.bundle,
            args.backend,
            threads=args.threads,
            max_batch=args.max_batch,
            placement=parse_placement(args.place),
            engines=args.engines,
        ) as pipeline,
        ProgressBar() as progress,
    ):
        model = pipeline.manifest.hmar
        labels = range(model.num_classes) if args.labels is None else parse_labels(args.labels)
        pictures = [read_picture(path, model.image_side_px) for path in args.images]
        for picture in filter(lambda p: p.notes, pictures):
            print(f"note: {picture.path}: {', '.join(picture.notes)}", file=sys.stderr)
        ranking = rank(
            pipeline,
            np.stack([picture.pixels for picture in pictures]),
            list(labels),
            on_image=lambda done: progress("scoring", done, len(pictures)),
        )
        classes = pipeline.class_names
    names = [classes[c] if isinstance(c, int) and 0 <= c < len(classes) else str(c) for c in labels]
    print("\n".join(lines(args.images, ranking, names, args.top)))
    if args.json is not None:
        write_json(args.json, args.images, ranking, names)


if __name__ == "__main__":
    run(main, DeployError)
