"""Print what mask schedules cost: passes, tokens, and work of the transformer against `fast`.

Counted as the runtime runs them with guidance: next-scale passes after the first scale have two
rows per image, masked passes one. Work is that of the matrix products and of attention.

example:
  python scripts/schedule_table.py --model hmar-d16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hmar.config import PRESETS, HMARConfig, default_schedule
from runtime.schedule import masked_counts, parse_schedule
from scripts.cli import parser, run

SIDES_PX = (256, 512)


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--model", default="hmar-d16", help="preset without its side in pixels")
    p.add_argument(
        "--schedules",
        default="fast,default,quality,cosine:1,cosine:2,cosine:4,cosine:8",
        metavar="S,S,…",
        help="names, see scripts/generate.py",
    )
    return p.parse_args()


def pass_flops(config: HMARConfig, rows: int, num_tokens: int) -> int:
    """Operations of one pass: linear layers of all blocks, attention, and the head."""
    C, depth = config.embed_dim, config.depth
    linear = 24 * C * C * depth + 2 * C * config.vocab_size
    return rows * num_tokens * (linear + 4 * num_tokens * C * depth)


def costs(config: HMARConfig, name: str) -> tuple[int, int, int]:
    """Masked passes, tokens that they predict again, and operations of all passes."""
    default = default_schedule(config.patch_nums)
    schedule = parse_schedule(name, default, config.patch_nums)
    passes = tokens = flops = 0
    for k, pn in enumerate(config.patch_nums):
        counts = masked_counts(() if schedule is None else schedule[k], pn * pn)
        passes, tokens = passes + len(counts), tokens + sum(counts)
        flops += pass_flops(config, 1 if k == 0 else 2, pn * pn)
        flops += len(counts) * pass_flops(config, 1, pn * pn)
    return passes, tokens, flops


def lines(model: str, schedules: list[str]) -> Iterator[str]:
    """A Markdown table."""
    configs = [_config(f"{model}-{side}") for side in SIDES_PX]
    heads = (f"{side} px: passes | tokens | work" for side in SIDES_PX)
    yield f"| schedule | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * (3 * len(configs))
    for name in schedules:
        cells = []
        for config in configs:
            passes, tokens, flops = costs(config, name)
            share = flops / costs(config, "fast")[2]
            cells.append(
                f"{config.num_scales} + {passes} | {config.seq_len} + {tokens} | {share:.2f}"
            )
        yield f"| `{name}` | {' | '.join(cells)} |"


def _config(name: str) -> HMARConfig:
    config = PRESETS.get(name)
    if not isinstance(config, HMARConfig):
        known = sorted(n for n, c in PRESETS.items() if isinstance(c, HMARConfig))
        raise ValueError(f"{name}: no preset of HMAR; there are {', '.join(known)}")
    return config


def main() -> None:
    args = parse_args()
    print("\n".join(lines(args.model, args.schedules.split(","))))


if __name__ == "__main__":
    run(main)
