"""Regenerate a part of a picture: inpainting, outpainting, another class, or variations.

White in the mask, or the inside of the box, is regenerated; --outside turns that round. Pictures of
any size are resized to the model's, and padded to a square; the padding is regenerated too.

examples:
  python scripts/edit.py --bundle B --image in.png --mask mask.png --label 207 --out out.png
  python scripts/edit.py --bundle B --image in.png --box 40,40,200,220 --outside --label 207 \\
    --blend --out wider.png
  python scripts/edit.py --bundle B --image in.png --keep-scales 6 --label 207 --samples 4 \\
    --out variations.png
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from runtime.editing import EDIT_METHODS, EditConfig, load_keep, load_tokens
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from runtime.trace import Trace
from scripts.cli import joined, parse_placement, parser, run
from scripts.generate import add_run_arguments, make_draws, parse_labels, sampling_config
from scripts.images import check_writable, write_grid
from scripts.pictures import Picture, keep_by_box, parse_box, read_mask, read_picture
from scripts.previews import Previews

FEATHER_PX = 4
TONE_SCALES = 3


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle folder")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, metavar="FILE", help="picture to edit")
    source.add_argument(
        "--given",
        type=Path,
        metavar="FILE",
        help="token maps instead: .npz with s0, s1, … each (B, tokens), or a trace",
    )
    region = p.add_mutually_exclusive_group()
    region.add_argument("--mask", type=Path, metavar="FILE", help="white: regenerate, black: keep")
    region.add_argument(
        "--box", metavar="X0,Y0,X1,Y1", help="regenerate this, in the file's pixels"
    )
    region.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="keep mask as .npy: boolean, True = keep, one entry per finest token or pixel",
    )
    p.add_argument(
        "--outside", action="store_true", help="keep the mask's white or the box instead"
    )
    p.add_argument(
        "--label",
        required=True,
        metavar="L[,L…]",
        help="what to show: class number or name, -1 = none; several give a picture each",
    )
    p.add_argument("--samples", type=int, default=1, metavar="N", help="pictures of each label")
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    p.add_argument(
        "--first-index", type=int, default=0, metavar="N", help="see scripts/generate.py"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="image to write")
    p.add_argument("--columns", type=int, metavar="N", help="images in a row (default: a square)")
    p.add_argument(
        "--method",
        choices=EDIT_METHODS,
        default="known",
        help="keep known tokens in all passes, or the procedure published for VAR",
    )
    p.add_argument(
        "--dilate", type=int, default=0, metavar="PX", help="grow the region, in the model's pixels"
    )
    p.add_argument(
        "--keep-scales",
        type=int,
        metavar="K",
        help="keep the first K scales whole, so that the rest keeps its tone (default: "
        f"{TONE_SCALES} with a mask or box and the method known, else 0)",
    )
    p.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="start from the picture's tokens, and run the masked passes N times",
    )
    p.add_argument(
        "--blend",
        type=int,
        nargs="?",
        const=FEATHER_PX,
        metavar="PX",
        help=f"put kept pixels back, with a seam of PX pixels ({FEATHER_PX} if not said)",
    )
    add_run_arguments(p)
    return p.parse_args(joined(sys.argv[1:], "--label"))


def edit_config(args: argparse.Namespace) -> EditConfig:
    has_region = args.mask is not None or args.box is not None
    default = TONE_SCALES if has_region and args.method == "known" else 0
    return EditConfig(
        method=args.method,
        dilation_px=args.dilate,
        keep_scales=default if args.keep_scales is None else args.keep_scales,
        refine_rounds=args.refine,
        feather_px=args.blend,
    )


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def read_keep(args: argparse.Namespace, picture: Picture | None, finest: int) -> np.ndarray:
    """The keep mask that the arguments ask for."""
    if args.keep is not None:
        keep = load_keep(args.keep)
        if keep.all() or not keep.any():
            note(f"{args.keep}: keeps {'everything' if keep.all() else 'nothing'}")
        return ~keep if args.outside else keep
    if args.mask is None and args.box is None:
        if not args.keep_scales and not args.refine:
            raise ValueError(
                "nothing says what to regenerate; give --mask, --box or --keep, or --keep-scales K "
                "or --refine N for the whole picture"
            )
        return np.zeros((finest, finest), np.bool_)
    if picture is None:
        raise ValueError("--mask and --box are of a picture; with --given, use --keep")
    if args.mask is not None:
        return read_mask(args.mask, picture, is_outside=args.outside)
    return keep_by_box(parse_box(args.box), picture, is_outside=args.outside)


def rows(
    images: list[np.ndarray], labels: list[int | str], samples: int
) -> tuple[list[np.ndarray], list[int | str]]:
    """Arrays of a row per picture, and labels: one of either goes with all of the other."""
    have, wanted = len(images[0]), len(labels)
    if samples < 1:
        raise ValueError(f"--samples must be >= 1, got {samples}")
    if have != wanted and 1 not in (have, wanted):
        raise ValueError(f"there are {have} pictures for {wanted} labels; give one label for each")
    count = max(have, wanted)
    images = [np.repeat(np.repeat(i, count // have, axis=0), samples, axis=0) for i in images]
    return images, [label for label in labels * (count // wanted) for _ in range(samples)]


def main() -> None:
    args = parse_args()
    for path in filter(None, (args.out, args.trace, args.strip, args.animate)):
        check_writable(path)
    edit = edit_config(args)
    draws, trace = make_draws(args.draws), Trace(logits=args.trace_logits) if args.trace else None
    previews = Previews(strip=args.strip, animation=args.animate)
    with Pipeline.load(
        args.bundle,
        args.backend,
        threads=args.threads,
        max_batch=args.max_batch,
        placement=parse_placement(args.place),
        engines=args.engines,
    ) as pipeline:
        model = pipeline.manifest.hmar
        picture = None if args.image is None else read_picture(args.image, model.image_side_px)
        if picture is not None and picture.notes:
            note(f"{args.image}: {', '.join(picture.notes)}")
        keep = read_keep(args, picture, model.patch_nums[-1])
        if picture is None:
            given = load_tokens(args.given, model.patch_nums)
        else:
            given = [picture.pixels[None]]
        given, labels = rows(given, parse_labels(args.label), args.samples)
        start = time.perf_counter()
        images = pipeline.edit(
            given if picture is None else given[0],
            keep,
            labels,
            edit=edit,
            seed=args.seed,
            image_index=range(args.first_index, args.first_index + len(labels)),
            sampling=sampling_config(args, pipeline),
            draws=draws,
            on_scale=previews,
            trace=trace,
        )
        seconds = time.perf_counter() - start
        backend = pipeline.runner.name
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
