"""Judge samples of the demo checkpoint against real renders and against reconstructions.

Every --samples file is an .npz with `images` (N, H, W, 3) uint8 and `labels` (N,), from any
backend. Figures stand beside those of real renders, of the same with wrong labels, of their
reconstructions, and of real renders with the class and background pairs that training never shows.
Needs two small packages: see scripts/lite0.py.

example:
  python scripts/evaluate_demo.py --data parts.npz --ckpt demo --samples masked=a.npz plain=b.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from hmar.errors import CheckpointError
from hmar.training.demo import EVALUATION_SEED
from hmar.training.parts import PartPack
from scripts.cli import parser, run
from scripts.images import check_writable, write_grid
from scripts.judging import Judging, PictureSet, make_sets, render_set, table, write_json

SHEET_PICTURES, SHEET_COLUMNS = 104, 8


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="published demo files")
    p.add_argument("--samples", nargs="+", required=True, metavar="NAME=FILE", help="to judge")
    p.add_argument("--num-real", type=int, default=2600, help="real renders in each set")
    p.add_argument("--judge-steps", type=int, default=400, help="training steps of the CNN")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    p.add_argument("--sheet", type=Path, metavar="FILE", help="samples that show held-out pairs")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    for path in filter(None, (args.json, args.sheet)):
        check_writable(path)
    samples = [PictureSet.load(*_named(text)) for text in args.samples]
    pack = PartPack.load(args.data)
    judging = Judging(pack, args.num_real, args.judge_steps, args.device)
    unseen = render_set(
        "held-out pairs", pack, args.num_real, EVALUATION_SEED + 4, args.device, "held_out"
    )
    real = make_sets(pack, args.ckpt, args.num_real, args.device)
    rows = [judging.judge(pictures) for pictures in (*real, unseen, *samples)]
    print(table(rows))
    if args.sheet is not None:
        shown = np.concatenate([s.images[judging.shows_held_out_pair(s)] for s in samples])
        if len(shown):
            write_grid(shown[:SHEET_PICTURES], args.sheet, SHEET_COLUMNS)
        else:
            print(f"{args.sheet} is not written: no sample shows a held-out pair")
    if args.json is not None:
        write_json(rows, args.json)


def _named(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--samples {text!r}: expected NAME=FILE, such as masked=samples.npz")
    return name, Path(path)


if __name__ == "__main__":
    run(main, CheckpointError, OSError)
