"""How often the likelihood of its tokens names a demo picture's class.

Real renders, of the class and background pairs that training never shows or of the others, are
scored under all classes by an exported bundle; no judge is involved.

example:
  python scripts/classify_demo.py --bundle out/demo --data parts.npz --num 208
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from hmar.training.demo import EVALUATION_SEED
from hmar.training.parts import PartPack
from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.scoring import Ranking, rank
from scripts.cli import ProgressBar, parser, run
from scripts.judging import render_set


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="of the demo")
    p.add_argument("--data", type=Path, required=True, help="from scripts/pack_demo_data.py")
    p.add_argument(
        "--split",
        choices=("held_out", "train"),
        default="held_out",
        help="pairs of class and background that training never shows, or the others",
    )
    p.add_argument("--num", type=int, default=208, metavar="N", help="pictures")
    p.add_argument("--seed", type=int, default=EVALUATION_SEED + 5, help="of the renders")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="library and device")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    return p.parse_args()


def report(name: str, ranking: Ranking, label_N: np.ndarray) -> str:
    """Accuracy by all tokens, then by those of the first scales alone."""
    upto_NKS = ranking.log_likelihood.cumsum(axis=2)
    right_S = (upto_NKS.argmax(axis=1) == label_N[:, None]).mean(axis=0)
    return (
        f"{name}: {right_S[-1]:.1%} of {len(label_N)} right (chance {1 / upto_NKS.shape[1]:.1%}); "
        f"by the first scales alone: {', '.join(f'{share:.1%}' for share in right_S[:-1])}"
    )


def main() -> None:
    args = parse_args()
    pack = PartPack.load(args.data)
    with (
        Pipeline.load(args.bundle, args.backend, threads=args.threads, max_batch=13) as pipeline,
        ProgressBar() as progress,
    ):
        labels = list(range(pipeline.manifest.hmar.num_classes))
        pictures = render_set(args.split, pack, args.num, args.seed, "cpu", args.split)
        ranking = rank(
            pipeline,
            pictures.images,
            labels,
            on_image=lambda done: progress("scoring", done, args.num),
        )
    print(report(args.split, ranking, pictures.labels))


if __name__ == "__main__":
    run(main, DeployError, OSError)
