"""Compare every graph of a bundle with PyTorch again, and print the table.

Runs the same ladder as the export: names, dtypes, shapes, values and teacher-forced tokens, on ONNX
Runtime's CPU provider. The exit code is 1 if anything differs by more than the limits. With
--backend another backend is measured, such as TensorRT engines; there are no limits then.

example:
  python scripts/verify.py --bundle bundles/hmar-d16 --ckpt hmar-d16.pth --vae vae_ch160v4096z32.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export import ExportError, verify_bundle
from hmar.errors import CheckpointError
from runtime.backends.base import StepRunner
from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from scripts.cli import ProgressBar, add_num_heads, parser, run


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle folder")
    p.add_argument(
        "--ckpt",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoint that it was exported from; one file or the two stages",
    )
    p.add_argument(
        "--vae",
        type=Path,
        required=True,
        metavar="FILE",
        help="tokenizer or autoencoder that it was exported from",
    )
    p.add_argument(
        "--backend",
        choices=BACKENDS,
        help="measure this backend; trt needs engines built with --guidance any",
    )
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the certificate to this file"
    )
    p.add_argument("--branch-layers", type=int, metavar="N", help="as given to the export")
    add_num_heads(p)
    return p.parse_args()


@contextmanager
def open_runner(args: argparse.Namespace) -> Iterator[StepRunner | None]:
    """The runner to measure, if one is named."""
    if args.backend is None:
        yield None
        return
    with Pipeline.load(args.bundle, args.backend) as pipeline:
        yield pipeline.runner


def main() -> None:
    args = parse_args()
    with open_runner(args) as runner, ProgressBar() as progress:
        certificate = verify_bundle(
            args.bundle,
            args.ckpt,
            args.vae,
            branch_layers=args.branch_layers,
            num_heads=args.num_heads,
            runner=runner,
            progress=progress,
        )
    print(certificate.table())
    if args.json:
        args.json.write_text(certificate.to_json(), encoding="utf-8")
    print(f"ok: {args.bundle}")


if __name__ == "__main__":
    run(main, CheckpointError, ExportError, DeployError)
