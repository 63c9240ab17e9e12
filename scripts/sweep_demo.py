"""Compare sampling settings of the demo checkpoint: one row of figures per setting.

All combinations of the given values are judged at the same number of pictures: first the first
value of every option, then the settings that differ from it in one option, then in two, and so on.
The rows of real pictures and of their reconstructions are the floor. Needs two small packages: see
scripts/lite0.py.

example:
  python scripts/sweep_demo.py --data parts.npz --ckpt demo --minutes 6 --json sweep.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from hmar.checkpoint import load_hmar, load_tokenizer
from hmar.errors import CheckpointError
from hmar.training.demo import HMAR_FILE, TOKENIZER_FILE
from hmar.training.parts import PartPack
from scripts.cli import parser, run
from scripts.images import check_writable, write_grid
from scripts.judging import Judging, PictureSet, make_sets, table, write_json
from scripts.sampling import by_class, reference_sampler, sample_classes
from scripts.sweeping import SCHEDULES, by_importance

SHEET_COLUMNS = 8


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="published demo files")
    p.add_argument("--per-class", type=int, default=200, metavar="N", help="pictures of each class")
    p.add_argument("--cfg", type=float, nargs="+", default=[1.5, 1.0, 2.5, 4.0, 0.0], help="values")
    p.add_argument("--top-k", type=int, nargs="+", default=[600, 200, 50], help="values, 0 = off")
    p.add_argument("--top-p", type=float, nargs="+", default=[0.95, 0.85, 0.7], help="values")
    p.add_argument(
        "--schedules",
        nargs="+",
        default=list(SCHEDULES),
        choices=list(SCHEDULES),
        metavar="NAME",
        help="see scripts/sweeping.py",
    )
    p.add_argument("--minutes", type=float, help="begin no setting after this long")
    p.add_argument("--judge-steps", type=int, default=400, help="training steps of the CNN")
    p.add_argument("--batch-size", type=int, default=260)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    p.add_argument("--sheet", type=Path, metavar="FILE", help="eight samples a class, best setting")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


def main() -> None:
    args, started = parse_args(), time.monotonic()
    for path in filter(None, (args.json, args.sheet)):
        check_writable(path)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = False  # features in full float32
    pack = PartPack.load(args.data)
    model = load_hmar([args.ckpt / HMAR_FILE]).to(args.device)
    tokenizer = load_tokenizer(args.ckpt / TOKENIZER_FILE, model.config.patch_nums).to(args.device)
    num_pictures = args.per_class * pack.num_classes
    judging = Judging(pack, num_pictures, args.judge_steps, args.device)
    rows = [judging.score(s) for s in make_sets(pack, args.ckpt, num_pictures, args.device)]
    print(f"[{time.monotonic() - started:.0f} s] judges are fitted", file=sys.stderr)
    best = float("inf")
    for setting in by_importance(args.cfg, args.top_k, args.top_p, args.schedules):
        if args.minutes is not None and time.monotonic() - started > args.minutes * 60:
            break
        sampler = reference_sampler(model, tokenizer, setting.config(), args.seed)
        images, labels = sample_classes(sampler, pack.num_classes, args.per_class, args.batch_size)
        row = judging.score(PictureSet(name=setting.name, images=images, labels=labels))
        rows.append(row)
        print(f"[{time.monotonic() - started:.0f} s] {setting.name}", file=sys.stderr)
        if args.json is not None:
            write_json(rows, args.json)
        if row["frechet"] < best:
            best = row["frechet"]
            if args.sheet is not None:
                columns = min(SHEET_COLUMNS, args.per_class)
                write_grid(by_class(images, pack.num_classes, columns), args.sheet, columns)
    print(table(rows))


if __name__ == "__main__":
    run(main, CheckpointError, OSError)
