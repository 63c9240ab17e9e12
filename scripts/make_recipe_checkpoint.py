"""Write a checkpoint in the published key layout, filled by the golden weight recipe.

Its pictures are noise: the weights are pseudo-random. It takes every road that a real checkpoint
takes, so it shows that export and generation work, and the golden traces say what must come out.

example:
  python scripts/make_recipe_checkpoint.py --case tiny --out out/ckpt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.cli import parser, run
from tests.checkpoints import published_config, write_pth
from tests.golden_data import Case

GOLDEN = {"tiny": ("hmar", "vae"), "tiny_stages": ("nsp", "mp", "vae"), "d16_256": ("hmar", "vae")}
OTHERS = {"d20_256": (20, 256), "d24_256": (24, 256), "d24_512": (24, 512), "d30_256": (30, 256)}
"""Published sizes without golden traces: depth, and side in pixels."""


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--case",
        choices=(*GOLDEN, *OTHERS),
        default="tiny",
        help="golden case, or another published size; d16_256 takes 2.3 GB, d30_256 10.7 GB",
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the .pth files to"
    )
    return p.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.case in OTHERS:
        kinds, config = ("hmar", "vae"), published_config(*OTHERS[args.case])
    else:
        kinds, config = GOLDEN[args.case], Case(args.case).config
    for kind in kinds:
        path = write_pth(args.out, kind, config)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
