"""Write a bundle as a model of a repository that Triton Inference Server serves.

The server runs it in its Python backend, with this package installed in its Python environment
(`pip install hmar-deploy` and onnxruntime, or what the backend needs). Requests of several clients
share a batch. Settings are parameters in the model's config.pbtxt.

example:
  python scripts/export_triton.py --bundle bundles/hmar-d16 --out model_repository
  tritonserver --model-repository model_repository
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.bundle import Bundle
from runtime.config import BACKENDS
from runtime.errors import DeployError
from runtime.triton_repository import TritonConfig, write_repository
from scripts.cli import parser, run


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle folder")
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="repository; may hold other models"
    )
    p.add_argument("--name", default="hmar", help="of the model")
    p.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="inference library and device"
    )
    p.add_argument("--max-batch", type=int, default=8, metavar="N", help="most images in one pass")
    p.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=2000,
        metavar="N",
        help="how long a request waits for others to share a pass with",
    )
    p.add_argument(
        "--seed", type=int, default=0, help="with it, requests' indices name random numbers"
    )
    return p.parse_args()


def main() -> None:
    args = parse_args()
    config = TritonConfig(
        name=args.name,
        backend=args.backend,
        max_batch=args.max_batch,
        max_queue_delay_us=args.max_queue_delay_us,
        seed=args.seed,
    )
    bundle = Bundle.open(args.bundle)
    bundle.check_files()
    folder = write_repository(bundle, args.out, config)
    print(f"{folder}: serve it with tritonserver --model-repository {args.out}")


if __name__ == "__main__":
    run(main, DeployError)
