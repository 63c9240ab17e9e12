"""Export a checkpoint and its autoencoder to an ONNX bundle.

The checkpoint may be a Hi-MAR file; or one merged HMAR file, one next-scale stage file, or the pair
of stage files (next-scale and masked, in any order). Family and sizes are read from the keys; of a
Hi-MAR file the running averages (model_ema) are taken. The bundle holds one graph per step, one
shared weights file, a manifest and a parity certificate.

examples:
  python scripts/export.py --ckpt hmar-d16.pth --vae vae_ch160v4096z32.pth --out bundles/hmar-d16
  python scripts/export.py --ckpt checkpoint-last.pth --vae kl16.ckpt --out bundles/himar-b
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export import ExportConfig, ExportError, export_bundle
from export.config import PRECISIONS
from hmar.errors import CheckpointError
from scripts.cli import ProgressBar, add_num_heads, parser, run


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--ckpt",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoint: .pth or .safetensors; one file, or the two stages of HMAR",
    )
    p.add_argument(
        "--vae",
        type=Path,
        required=True,
        metavar="FILE",
        help="tokenizer (HMAR) or KL autoencoder (Hi-MAR): .pth, .ckpt or .safetensors",
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
        help="JSON object with the bundle's defaults: cfg, top_k, top_p, mask_schedule; Hi-MAR: "
        "cfg, re_cfg, cfg_schedule, temperature, num_iter, pivot_diffusion_steps, "
        "dense_diffusion_steps (otherwise those published for these sizes)",
    )
    p.add_argument(
        "--num-iter",
        type=int,
        metavar="N",
        help="Hi-MAR: steps of the dense phase, each a graph of its own (otherwise as in "
        "--sampling or as published); generate.py can still take another number",
    )
    p.add_argument(
        "--branch-layers",
        type=int,
        metavar="N",
        help="blocks per branch, for stage files that do not tell",
    )
    add_num_heads(p)
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
            num_iter=args.num_iter,
            branch_layers=args.branch_layers,
            num_heads=args.num_heads,
            progress=progress,
        )
    print(report.summary())


if __name__ == "__main__":
    run(main, CheckpointError, ExportError)
