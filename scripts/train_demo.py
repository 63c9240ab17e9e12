"""Train the demo checkpoint: the tokenizer, then next-scale, then masked prediction.

Every stage writes its state (small files, for --resume) and its weights in the published layout
(for --init-from) to --out. Later stages read tokenizer.safetensors and hmar.safetensors from
--init-from.

example:
  python scripts/train_demo.py tokenizer  --data parts.npz --out run/tok
  python scripts/train_demo.py next-scale --data parts.npz --out run/ns   --init-from run/tok
  cp run/tok/tokenizer.safetensors run/ns
  python scripts/train_demo.py masked     --data parts.npz --out run/mask --init-from run/ns
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from hmar.config import PATCH_NUMS_256
from hmar.errors import CheckpointError
from hmar.training.config import (
    DEMO_HMAR,
    DEMO_TOKENIZER,
    DEMO_TRANSFORMER_LOSSES,
    STAGE_DEFAULTS,
)
from hmar.training.demo import (
    PreviewConfig,
    RunFiles,
    train_masked,
    train_next_scale,
    train_tokenizer,
)
from hmar.training.errors import TrainingError
from scripts.cli import parser, run

FROM_STAGE = ("steps", "batch_size", "lr")  # defaults differ by stage


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("stage", choices=tuple(STAGE_DEFAULTS))
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument(
        "--resume", type=Path, metavar="DIR", help="folder with this stage's state files"
    )
    p.add_argument("--init-from", type=Path, metavar="DIR", help="folder with published files")
    p.add_argument("--steps", type=int, help="steps of this run (default: by stage)")
    p.add_argument("--minutes", type=float, help="stop after this long, compilation included")
    p.add_argument("--batch-size", type=int, help="pictures per step (default: by stage)")
    p.add_argument("--lr", type=float, help="peak learning rate (default: by stage)")
    p.add_argument("--cooldown", type=float, default=0.0, help="last share, with a falling rate")
    p.add_argument("--seed", type=int, default=0, help="of pictures, dropped labels and masks")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--no-compile", action="store_true", help="run the networks uncompiled")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    logging.getLogger("hmar.training").setLevel(logging.INFO)  # the progress lines
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    given = {key: getattr(args, key) for key in FROM_STAGE if getattr(args, key) is not None}
    config = replace(
        STAGE_DEFAULTS[args.stage],
        minutes=args.minutes,
        cooldown=args.cooldown,
        seed=args.seed,
        device=args.device,
        is_compiled=not args.no_compile,
        **given,
    )
    files = RunFiles(data=args.data, out=args.out, resume=args.resume, init_from=args.init_from)
    if args.stage == "tokenizer":
        train_tokenizer(files, DEMO_TOKENIZER, PATCH_NUMS_256, config, PreviewConfig())
    elif args.stage == "next-scale":
        train_next_scale(files, DEMO_HMAR, config, DEMO_TRANSFORMER_LOSSES, PreviewConfig())
    else:
        train_masked(files, config, DEMO_TRANSFORMER_LOSSES, PreviewConfig())


if __name__ == "__main__":
    run(main, TrainingError, CheckpointError, OSError)
