"""Hi-MAR's part of `scripts/generate.py`: its options, and a generation with them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_draws import HiMARDraws
from runtime.himar_pipeline import HiMARPipeline, StepEvent
from runtime.himar_schedule import CfgSchedule
from runtime.trace import Trace
from scripts.himar_case import CaseDraws, case_sampling, read_case
from scripts.images import write_grid


def add_sampling_options(p: argparse.ArgumentParser) -> None:
    """Options of Hi-MAR's sampling beside `--cfg`; defaults are the bundle's."""
    p.add_argument("--num-iter", type=int, metavar="N", help="Hi-MAR: steps of the dense phase")
    p.add_argument("--re-cfg", type=float, help="Hi-MAR: guidance strength of the pivots' phase")
    p.add_argument(
        "--cfg-schedule",
        choices=get_args(CfgSchedule),
        help="Hi-MAR: whether guidance grows with the known tokens",
    )
    p.add_argument("--temperature", type=float, help="Hi-MAR: factor on the diffusion's noise")
    p.add_argument(
        "--diffusion-steps",
        metavar="MLP,DIT",
        help="Hi-MAR: diffusion steps of the pivots' and of the dense tokens' denoiser, such as "
        "100,250; counts per section of the time axis are separated by commas, and both denoisers "
        "by a colon then: 5,3,2,0:9,6,5,0",
    )


def parse_diffusion_steps(text: str) -> tuple[str, str]:
    """Diffusion steps of both denoisers: separated by a colon, semicolon or space, or in halves.

    Raises:
        ValueError: there are not two of them.
    """
    parts = re.split(r"\s*[:;\s]\s*", text.strip())
    if len(parts) == 1:
        counts = text.split(",")
        middle, is_odd = divmod(len(counts), 2)
        parts = [text] if is_odd else [",".join(counts[:middle]), ",".join(counts[middle:])]
    if len(parts) != 2:
        raise ValueError(
            "--diffusion-steps must be those of the pivots' and of the dense tokens' denoiser, "
            f"such as 100,250 or 5,3,2,0:9,6,5,0, got {text!r}"
        )
    return parts[0], parts[1]


def sampling_config(args: argparse.Namespace, defaults: HiMARSamplingConfig) -> HiMARSamplingConfig:
    """The defaults with what the command line says otherwise."""
    names = ("num_iter", "cfg", "re_cfg", "cfg_schedule", "temperature")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.diffusion_steps is not None:
        steps = parse_diffusion_steps(args.diffusion_steps)
        given["pivot_diffusion_steps"], given["dense_diffusion_steps"] = steps
    return replace(defaults, **given)


def settings(
    pipeline: HiMARPipeline, args: argparse.Namespace, count: int
) -> tuple[HiMARSamplingConfig, HiMARDraws | None]:
    """Settings and randomness: the bundle's defaults and the seed, or those of a golden case.

    Raises:
        ValueError: the case is for another number of images.
    """
    if args.draws is None:
        return sampling_config(args, pipeline.defaults), None
    case = read_case(Path(args.draws))
    if case["sampler"].get("bsz") != count:
        raise ValueError(
            f"{args.draws}: the case is for {case['sampler'].get('bsz')} images, got {count} labels"
        )
    sampling = sampling_config(args, case_sampling(case))
    model = pipeline.manifest.himar
    return sampling, CaseDraws(case["noise_seed"], sampling, model, count, slice(None))


def read_vectors(path: Path) -> np.ndarray:
    """Condition vectors of an `.npy` file.

    Raises:
        ValueError: it is not one of numbers.
    """
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not an .npy file of vectors ({error})") from error


def generate(
    pipeline: HiMARPipeline,
    args: argparse.Namespace,
    labels: Sequence[int | str] | None,
    progress: Callable[[str, int, int], None],
    trace: Trace | None,
) -> np.ndarray:
    """Images of labels, or of the vectors of `--cond` if there are none, (B, H, W, 3) uint8."""
    cond = read_vectors(args.cond) if args.cond is not None else None
    count = len(labels if labels is not None else cond)
    sampling, draws = settings(pipeline, args, count)
    pivot_steps, small = pipeline.manifest.himar.pivot_steps, []
    total = pivot_steps + sampling.num_iter

    def report(event: StepEvent) -> None:
        before = 0 if event.phase == "pivot" else pivot_steps
        done = event.images.start * total + (before + event.step_idx + 1) * len(event.tokens)
        is_last = event.step_idx + 1 == event.num_steps
        progress(f"generating {event.phase} step {event.step_idx}", done, count * total)
        if args.small_out is not None and event.phase == "pivot" and is_last:
            small.append(event.preview())

    images = pipeline.generate(
        labels,
        cond=cond,
        seed=args.seed,
        image_index=range(args.first_index, args.first_index + count),
        sampling=sampling,
        draws=draws,
        on_step=report,
        trace=trace,
    )
    if small:
        write_grid(np.concatenate(small), args.small_out, args.columns)
    return images
