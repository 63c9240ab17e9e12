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
from tests.checkpoints import published_config, write_pth
from tests.golden_data import Case
from tests.himar_checkpoints import CASES as HIMAR
from tests.himar_checkpoints import write_himar, write_kl_vae

GOLDEN = {"tiny": ("hmar", "vae"), "tiny_stages": ("nsp", "mp", "vae"), "d16_256": ("hmar", "vae")}
OTHERS = {"d20_256": (20, 256), "d24_256": (24, 256), "d24_512": (24, 512), "d30_256": (30, 256)}
"""Published sizes without golden traces: depth, and side in pixels."""


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--case",
        choices=(*GOLDEN, *OTHERS, *HIMAR),
        default="tiny",
        help="golden case, or another published size; d16_256 takes 2.3 GB, d30_256 10.7 GB; of "
        "Hi-MAR are tiny_a, narrow, and himar_base with 1.2 GB",
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the files to"
    )
    return p.parse_args()


def write(case: str, folder: Path) -> Iterator[Path]:
    """Writes the files of a case one after the other."""
    if case in HIMAR:
        yield write_himar(folder, case)
        yield write_kl_vae(folder, case)
        return
    if case in OTHERS:
        kinds, config = ("hmar", "vae"), published_config(*OTHERS[case])
    else:
        kinds, config = GOLDEN[case], Case(case).config
    for kind in kinds:
        yield write_pth(folder, kind, config)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in write(args.case, args.out):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
