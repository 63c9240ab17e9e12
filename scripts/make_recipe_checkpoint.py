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
from tests.checkpoints import write_pth
from tests.golden_data import Case

FILES = {"tiny": ("hmar", "vae"), "tiny_stages": ("nsp", "mp", "vae"), "d16_256": ("hmar", "vae")}


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--case",
        choices=FILES,
        default="tiny",
        help="golden case; d16_256 takes 2.3 GB and a minute",
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the .pth files to"
    )
    return p.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    case = Case(args.case)
    for kind in FILES[args.case]:
        path = write_pth(args.out, kind, case.config)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
