"""Export an HMAR checkpoint and its tokenizer to an ONNX bundle.

The checkpoint may be one merged HMAR file, one next-scale stage file, or the pair of stage files
(next-scale and masked, in any order). All sizes are read from the keys. The bundle holds one graph
per scale step, one shared weights file, a manifest and a parity certificate.

example:
  python scripts/export.py --ckpt hmar-d16.pth --vae vae_ch160v4096z32.pth --out bundles/hmar-d16
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export import ExportConfig, ExportError, export_bundle
from export.config import PRECISIONS
from hmar.errors import CheckpointError
from scripts.cli import ProgressBar, parser, run


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--ckpt",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoint: .pth or .safetensors; one file or the two stages",
    )
    p.add_argument(
        "--vae", type=Path, required=True, metavar="FILE", help="tokenizer: .pth or .safetensors"
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="bundle folder to write; an old bundle there is replaced",
    )
    p.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="dtype of weights and activations"
    )
    p.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the comparison with PyTorch; the bundle then has no certificate",
    )
    p.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="JSON list of class names, to be usable in generate.py --labels",
    )
    p.add_argument(
        "--sampling",
        type=Path,
        metavar="FILE",
        help="JSON object with cfg, top_k, top_p, mask_schedule: the bundle's defaults "
        "(otherwise those published for this depth)",
    )
    p.add_argument(
        "--branch-layers",
        type=int,
        metavar="N",
        help="blocks per branch, for stage files that do not tell",
    )
    p.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="attention heads, for models without q/k norm and heads of other than 64",
    )
    return p.parse_args()


def main() -> None:
    args = parse_args()
    config = ExportConfig(precision=args.precision, verify=not args.no_verify)
    with ProgressBar() as progress:
        report = export_bundle(
            config,
            args.ckpt,
            args.vae,
            args.out,
            class_names=args.class_names,
            sampling=args.sampling,
            branch_layers=args.branch_layers,
            num_heads=args.num_heads,
            progress=progress,
        )
    print(report.summary())


if __name__ == "__main__":
    run(main, CheckpointError, ExportError)
