"""Packs the part images of the robohash wheel into one small file for scripts/train_demo.py.

Get the wheel with: pip download --no-deps robohash==2.0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hmar.training.parts import pack_wheel


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="robohash-2.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, required=True, help="packed file to write (.npz)")
    parser.add_argument("--side-px", type=int, default=128, help="side of the pictures (default: 128)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    pack = pack_wheel(args.wheel, args.side_px)
    pack.save(args.out)
    print(f"{args.out}: {len(pack.parts) - 1} parts of {pack.num_classes} classes, {len(pack.backgrounds)} backgrounds")


if __name__ == "__main__":
    main()
