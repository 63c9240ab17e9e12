"""Generate images from a bundle and write them as one grid.

examples:
  python scripts/generate.py --bundle bundles/hmar-d16 --labels 207,88 --seed 0 --out grid.png
  python scripts/generate.py --bundle bundles/himar-b --labels 207 --num-iter 4 --out a.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.config import BACKENDS, SamplingConfig
from runtime.draws import ArgmaxDraws, Draws, RecordedDraws
from runtime.errors import DeployError
from runtime.himar_pipeline import HiMARPipeline
from runtime.pipeline import HMARPipeline, Pipeline
from runtime.schedule import parse_schedule
from runtime.trace import Trace
from runtime.trajectory import ScaleEvent
from scripts import himar_generate
from scripts.cli import ProgressBar, joined, parse_placement, parser, run
from scripts.families import check_options
from scripts.images import check_writable, with_captions, write_grid
from scripts.previews import Previews


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--bundle",
        type=Path,
        required=True,
        metavar="DIR",
        help="bundle folder, from scripts/export.py",
    )
    p.add_argument(
        "--labels",
        metavar="L,L,…",
        help="classes: numbers, names if the bundle has them, -1 = none",
    )
    p.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same images on every backend"
    )
    p.add_argument(
        "--first-index",
        type=int,
        default=0,
        metavar="N",
        help="image i draws the random numbers of image N+i of this seed",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="image to write; the suffix says the format",
    )
    p.add_argument("--columns", type=int, metavar="N", help="images in a row (default: a square)")
    p.add_argument("--captions", action="store_true", help="write each image's class below it")
    p.add_argument(
        "--cond", type=Path, metavar="FILE", help="Hi-MAR: .npy file of vectors instead of labels"
    )
    p.add_argument(
        "--small-out",
        type=Path,
        metavar="FILE",
        help="Hi-MAR: also write the small images",
    )
    himar_generate.add_sampling_options(p)
    add_run_arguments(p)
    args = p.parse_args(joined(sys.argv[1:], "--labels"))
    if (args.labels is None) == (args.cond is None):
        p.error("give --labels, or --cond in their place")
    return args


def add_run_arguments(p: argparse.ArgumentParser) -> None:
    """Settings, previews, backend and verification, which scripts/edit.py takes too."""
    p.add_argument("--cfg", type=float, help="guidance strength (default: the bundle's)")
    p.add_argument(
        "--top-k", type=int, help="keep the k largest logits, 0 = off (default: the bundle's)"
    )
    p.add_argument(
        "--top-p", type=float, help="keep this probability mass, 0 = off (default: the bundle's)"
    )
    p.add_argument(
        "--schedule",
        default="default",
        metavar="S",
        help="masked passes: default, fast (none), quality, cosine:N, or JSON as '[[1],[1,3],…]'",
    )
    p.add_argument(
        "--context",
        choices=("scale", "prefix"),
        default="scale",
        help="what next-scale passes see; prefix is for benchmarks, without masks",
    )
    p.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="inference library and device"
    )
    p.add_argument(
        "--place",
        metavar="KIND=BACKEND,…",
        help="other backends for some kinds of graph, such as decode=ort-cpu",
    )
    p.add_argument(
        "--engines",
        type=Path,
        metavar="DIR",
        help="for the backend trt: folder of engines (default: the bundle's that fit this machine)",
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    p.add_argument(
        "--max-batch", type=int, default=8, help="images in one pass; larger requests are split"
    )
    p.add_argument(
        "--draws",
        metavar="D",
        help="for verification: argmax, or an .npz file of uniforms keyed s{k}_ns_u, s{k}_m{j}_u; "
        "of Hi-MAR the .json file of a golden case, whose settings are then the defaults",
    )
    p.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="for verification: write the arrays of a golden trace to this .npz file",
    )
    p.add_argument(
        "--trace-logits", action="store_true", help="also write raw and guided logits to the trace"
    )
    p.add_argument(
        "--strip", type=Path, metavar="FILE", help="also write what each scale adds, side by side"
    )
    p.add_argument(
        "--animate", type=Path, metavar="FILE", help="also write it as an animation (.gif or .webp)"
    )


def parse_labels(text: str) -> list[int | str]:
    """Numbers, and class names for everything that is not a number."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"--labels must be separated by commas, such as 207,88, got {text!r}")
    return [int(part) if part.lstrip("-").isdigit() else part for part in parts]


def sampling_config(args: argparse.Namespace, pipeline: HMARPipeline) -> SamplingConfig:
    defaults, patch_nums = pipeline.defaults, pipeline.manifest.hmar.patch_nums
    schedule = None if args.context == "prefix" and args.schedule == "default" else args.schedule
    return SamplingConfig(
        cfg=defaults.cfg if args.cfg is None else args.cfg,
        top_k=defaults.top_k if args.top_k is None else args.top_k,
        top_p=defaults.top_p if args.top_p is None else args.top_p,
        mask_schedule=None
        if schedule is None
        else parse_schedule(schedule, defaults.mask_schedule, patch_nums),
        context=args.context,
    )


def make_draws(text: str | None) -> Draws | None:
    if text is None:
        return None
    return ArgmaxDraws() if text == "argmax" else RecordedDraws.load(Path(text))


def generate(
    pipeline: HMARPipeline,
    args: argparse.Namespace,
    labels: Sequence[int | str],
    progress: ProgressBar,
    previews: Previews,
    trace: Trace | None,
) -> np.ndarray:
    """Images of HMAR, (B, H, W, 3) uint8."""

    def report(event: ScaleEvent) -> None:
        done = event.images.start * event.num_scales + (event.scale_idx + 1) * len(event.tokens)
        progress(
            f"generating scale {event.scale_idx} ({event.pn}x{event.pn})",
            done,
            len(labels) * event.num_scales,
        )
        previews(event)

    return pipeline.generate(
        labels,
        seed=args.seed,
        image_index=range(args.first_index, args.first_index + len(labels)),
        sampling=sampling_config(args, pipeline),
        draws=make_draws(args.draws),
        # the backend trt then runs everything at once, in less time than a bar is worth
        on_scale=None if args.backend == "trt" and not previews.are_wanted else report,
        trace=trace,
    )


def main() -> None:
    args = parse_args()
    labels = None if args.labels is None else parse_labels(args.labels)
    for path in filter(None, (args.out, args.trace, args.small_out, args.strip, args.animate)):
        check_writable(path)
    trace = Trace(logits=args.trace_logits) if args.trace else None
    previews = Previews(strip=args.strip, animation=args.animate)
    with (
        Pipeline.load(
            args.bundle,
            args.backend,
            threads=args.threads,
            max_batch=args.max_batch,
            placement=parse_placement(args.place),
            engines=args.engines,
        ) as pipeline,
        ProgressBar() as progress,
    ):
        check_options(args, pipeline.manifest.family)
        start = time.perf_counter()
        if isinstance(pipeline, HiMARPipeline):
            images = himar_generate.generate(pipeline, args, labels, progress, trace)
        else:
            images = generate(pipeline, args, labels, progress, previews, trace)
        seconds = time.perf_counter() - start
        backend = pipeline.runner.name
    if args.captions:
        images = with_captions(images, [str(label) for label in labels or range(len(images))])
    write_grid(images, args.out, args.columns)
    previews.write()
    if trace is not None:
        trace.save(args.trace)
    print(
        f"{args.out.resolve()}: {len(images)} images of {images.shape[2]} px, "
        f"{seconds:.1f} s on {backend}"
    )


if __name__ == "__main__":
    run(main, DeployError)
