"""Trains the demo checkpoint: first the tokenizer, then next-scale prediction, then masked prediction.

Every stage writes its state (small files, for --resume) and its weights in the published layout
(for --init-from) to --out:

  train_demo.py tokenizer  --data parts.npz --out run/tok
  train_demo.py next-scale --data parts.npz --out run/ns   --init-from run/tok
  train_demo.py masked     --data parts.npz --out run/mask --init-from run/ns

Later stages read tokenizer.safetensors and hmar.safetensors from --init-from.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from hmar.config import PATCH_NUMS_256
from hmar.training.config import DEMO_HMAR, DEMO_TOKENIZER, STAGE_DEFAULTS
from hmar.training.demo import PreviewConfig, RunFiles, train_masked, train_next_scale, train_tokenizer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(STAGE_DEFAULTS))
    parser.add_argument("--data", type=Path, required=True, help="parts packed by scripts/pack_demo_data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--resume", type=Path, help="folder with state files of this stage to go on from")
    parser.add_argument("--init-from", type=Path, help="folder with tokenizer.safetensors and hmar.safetensors")
    parser.add_argument("--steps", type=int, help="steps of this run (default: by stage)")
    parser.add_argument("--minutes", type=float, help="stop after this long, compilation included")
    parser.add_argument("--batch-size", type=int, help="pictures per step (default: by stage)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: by stage)")
    parser.add_argument("--cooldown", type=float, default=0.0, help="final share of the run with falling learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="run the networks uncompiled")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    given = {key: getattr(args, key) for key in ("steps", "batch_size", "lr") if getattr(args, key) is not None}
    config = replace(
        STAGE_DEFAULTS[args.stage], minutes=args.minutes, cooldown=args.cooldown, seed=args.seed,
        device=args.device, is_compiled=not args.no_compile, **given,
    )  # fmt: skip
    files = RunFiles(data=args.data, out=args.out, resume=args.resume, init_from=args.init_from)
    if args.stage == "tokenizer":
        train_tokenizer(files, DEMO_TOKENIZER, PATCH_NUMS_256, config, PreviewConfig())
    elif args.stage == "next-scale":
        train_next_scale(files, DEMO_HMAR, config, PreviewConfig())
    else:
        train_masked(files, config, PreviewConfig())


if __name__ == "__main__":
    main()
