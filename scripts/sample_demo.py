"""Sample pictures of every class, for scripts/evaluate_demo.py.

Writes an .npz with `images` (N, H, W, 3) uint8 and `labels` (N,): from an exported bundle with the
runtime, or from published files with the PyTorch reference. Batches are kept beside --out until all
are there: the same command goes on where a stopped one was. -v shows every batch.

example:
  python scripts/sample_demo.py --bundle out/demo --per-class 200 --out masked.npz
  python scripts/sample_demo.py --ckpt demo --per-class 200 --schedule none --out plain.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(ROOT := Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from hmar.checkpoint import load_hmar, load_tokenizer
from hmar.errors import CheckpointError
from hmar.training.demo import HMAR_FILE, TOKENIZER_FILE
from runtime.config import BACKENDS, SamplingConfig
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.schedule import parse_schedule
from scripts.cli import ProgressBar, parser, run
from scripts.images import check_writable
from scripts.sampling import (
    BatchFolder,
    Sampler,
    bundle_sampler,
    file_digest,
    fill_by_processes,
    parts_of,
    reference_sampler,
    sample_classes,
)


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, metavar="DIR", help="from scripts/export.py")
    source.add_argument("--ckpt", type=Path, metavar="DIR", help="published demo files")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write (.npz)")
    p.add_argument("--per-class", type=int, default=200, metavar="N", help="pictures of each class")
    p.add_argument("--cfg", type=float, help="guidance strength (default: as published)")
    p.add_argument("--top-k", type=int, help="keep the k largest logits (default: as published)")
    p.add_argument("--top-p", type=float, help="keep this probability (default: as published)")
    p.add_argument(
        "--schedule", default="default", help="default, fast, quality, cosine:N, or JSON"
    )
    p.add_argument(
        "--sampling",
        type=Path,
        default=ROOT / "demo" / "sampling.json",
        metavar="FILE",
        help="what is published for --ckpt; a bundle holds it",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=26)
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="for --bundle")
    p.add_argument("--threads", type=int, default=0, help="for --bundle; 0 = one per core")
    p.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="for --bundle: draw with N processes of one thread, the quick way on many cores",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", default=default, help="for --ckpt")
    return p.parse_args()


def sampling_config(
    args: argparse.Namespace, defaults: SamplingConfig, patch_nums: Sequence[int]
) -> SamplingConfig:
    given = {k: v for k in ("cfg", "top_k", "top_p") if (v := getattr(args, k)) is not None}
    schedule = parse_schedule(args.schedule, defaults.mask_schedule, patch_nums)
    return replace(defaults, mask_schedule=schedule, **given)


@contextmanager
def open_sampler(args: argparse.Namespace) -> Iterator[tuple[Sampler, int, SamplingConfig, str]]:
    """The sampler, the number of classes, the settings and what names the weights."""
    if args.bundle is not None:
        with Pipeline.load(
            args.bundle, args.backend, threads=args.threads, max_batch=args.batch_size
        ) as pipeline:
            model = pipeline.manifest.hmar
            config = sampling_config(args, pipeline.defaults, model.patch_nums)
            sampler = bundle_sampler(pipeline, config, args.seed)
            weights = file_digest(args.bundle / "manifest.json")
            yield sampler, model.num_classes, config, weights
    else:
        published = SamplingConfig(**json.loads(args.sampling.read_text(encoding="utf-8")))
        network = load_hmar([args.ckpt / HMAR_FILE]).to(args.device)
        config = sampling_config(args, published, network.config.patch_nums)
        tokenizer = load_tokenizer(args.ckpt / TOKENIZER_FILE, network.config.patch_nums)
        sampler = reference_sampler(network, tokenizer.to(args.device), config, args.seed)
        yield sampler, network.config.num_classes, config, file_digest(args.ckpt / HMAR_FILE)


def main() -> None:
    args = parse_args()
    check_writable(args.out)
    with open_sampler(args) as (sampler, num_classes, config, weights), ProgressBar() as bar:
        depends_on = {
            "weights": weights, **asdict(config), "seed": args.seed,
            "per_class": args.per_class, "batch_size": args.batch_size,
        }  # fmt: skip
        batches = BatchFolder(args.out.with_suffix(".batches"), depends_on)
        if args.bundle is not None and args.processes > 1:
            fill_by_processes(
                batches, args.bundle, args.backend, config, args.seed,
                parts_of(num_classes, args.per_class, args.batch_size), args.processes,
                on_batch=lambda done, total: bar("draw", done, total),
            )  # fmt: skip
        images, labels = sample_classes(
            batches.resuming(sampler),
            num_classes,
            args.per_class,
            args.batch_size,
            on_batch=lambda done, total: bar("sample", done, total),
        )
    np.savez_compressed(args.out, images=images, labels=labels)
    batches.remove()
    print(f"{args.out}: {len(labels)} pictures, cfg {config.cfg:g}, schedule {args.schedule}")


if __name__ == "__main__":
    run(main, CheckpointError, DeployError, OSError)
