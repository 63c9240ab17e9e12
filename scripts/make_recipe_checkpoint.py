"""Write a checkpoint in the published key layout, filled by the golden weight recipe.

Its pictures are noise: the weights are pseudo-random. It takes every road that a real checkpoint
takes, so it shows that export and generation work, and the golden traces say what must come out.

examples:
  python scripts/make_recipe_checkpoint.py --case tiny --out out/ckpt
  python scripts/make_recipe_checkpoint.py --case tiny_a --out out/himar
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.cli import parser, run
from tests.checkpoints import write_pth
from tests.golden_data import Case
from tests.himar_checkpoints import CASES as HIMAR_CASES
from tests.himar_checkpoints import write_himar, write_kl_vae

HMAR_CASES = {
    "tiny": ("hmar", "vae"),
    "tiny_stages": ("nsp", "mp", "vae"),
    "d16_256": ("hmar", "vae"),
}


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--case",
        choices=(*HMAR_CASES, *HIMAR_CASES),
        default="tiny",
        help="golden case, of HMAR (tiny, tiny_stages, d16_256) or of Hi-MAR (tiny_a, narrow, "
        "himar_base); d16_256 takes 2.3 GB and a minute, himar_base 1.3 GB",
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the files to"
    )
    return p.parse_args()


def write(case: str, folder: Path) -> Iterator[Path]:
    """Writes the files of a case one after the other."""
    if case in HIMAR_CASES:
        yield write_himar(folder, case)
        yield write_kl_vae(folder, case)
        return
    config = Case(case).config
    for kind in HMAR_CASES[case]:
        yield write_pth(folder, kind, config)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in write(args.case, args.out):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
