"""Sample pictures of every class with the PyTorch reference, for scripts/evaluate_demo.py.

Writes an .npz with `images` (N, H, W, 3) uint8 and `labels` (N,); on a GPU this is the quick way to
compare settings. Any other backend's samples can be judged from a file of the same form.

example:
  python scripts/sample_demo.py --ckpt demo --per-class 200 --cfg 1.5 --out samples.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from hmar.checkpoint import load_hmar, load_tokenizer
from hmar.errors import CheckpointError
from hmar.reference import ReferenceConfig
from hmar.training.demo import HMAR_FILE, PREVIEW_MASK_SCHEDULE, TOKENIZER_FILE
from hmar.training.preview import sample_classes
from runtime.schedule import parse_schedule
from scripts.cli import ProgressBar, parser, run
from scripts.images import check_writable


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="published demo files")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write (.npz)")
    p.add_argument("--per-class", type=int, default=200, metavar="N", help="pictures of each class")
    p.add_argument("--cfg", type=float, default=1.5, help="guidance strength")
    p.add_argument("--top-k", type=int, default=600, help="keep the k largest logits, 0 = off")
    p.add_argument("--top-p", type=float, default=0.95, help="keep this probability mass, 0 = off")
    p.add_argument("--schedule", default="default", help="default, none, or JSON")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=104)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    check_writable(args.out)
    model = load_hmar([args.ckpt / HMAR_FILE])
    tokenizer = load_tokenizer(args.ckpt / TOKENIZER_FILE, model.config.patch_nums)
    model, tokenizer = model.to(args.device), tokenizer.to(args.device)
    schedule = parse_schedule(args.schedule, PREVIEW_MASK_SCHEDULE)
    settings = ReferenceConfig(
        cfg=args.cfg, top_k=args.top_k, top_p=args.top_p, mask_schedule=schedule
    )
    with ProgressBar() as bar:
        images, labels = sample_classes(
            model,
            tokenizer,
            args.per_class,
            settings,
            args.seed,
            args.batch_size,
            on_batch=lambda done, total: bar("sample", done, total),
        )
    np.savez_compressed(args.out, images=images, labels=labels)
    print(f"{args.out}: {len(labels)} pictures, cfg {args.cfg:g}, schedule {args.schedule}")


if __name__ == "__main__":
    run(main, CheckpointError, OSError)
