"""Build TensorRT engines of a bundle, in the bundle's folder `engines`.

The scale-generic trunks get one optimization profile per scale and batch, so that the weights are
in memory once; the small graphs, the encoder and the decoder get one per batch. A batch in between
is padded to the next one built. Engines that are there and fit are kept; engines that do not fit
are an error that says why, unless --force is given.

Without --gpu, engines are for this machine's GPU. With it, TensorRT-RTX builds ahead of time, on
any machine. `--layout per-scale` builds one plan per step graph instead, for trtexec.

What generations put onto the GPU is recorded too, beside the engines, for the C++ runtime: kernels
of the plugin library, and runs of these engines where it has none. Recording needs no GPU, and no
TensorRT where kernels run everything.

example:
  python scripts/build_engines.py --bundle bundles/hmar-d16 --batch 1,8,64
  python scripts/build_engines.py --bundle bundles/hmar-d16 --batch 1 --gpu sm86,sm89,sm120
  python scripts/build_engines.py --bundle bundles/hmar-d16 --batch 1 --gpu sm90 --only-recordings
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.backends.kernel_engines import kinds_with_kernels, need_no_engines
from runtime.backends.kernel_library import MULTIPROCESSORS
from runtime.backends.recorded_work import Settings
from runtime.backends.recordings import Library, make_recordings
from runtime.backends.trt_library import FLAVOURS, import_tensorrt
from runtime.bundle import Bundle, Kind
from runtime.config import BackendConfig, SamplingConfig
from runtime.engine_cache import build_engines
from runtime.engine_manifest import find_engines_for
from runtime.engine_plan import (
    GUIDANCES,
    LAYOUTS,
    OPTIONAL,
    STAGED,
    EngineOptions,
    plan_engines,
)
from runtime.engine_target import ATTENTIONS, choose_target, local_gpu, local_multiprocessors
from runtime.errors import BackendUnavailableError, DeployError, EngineIncompatibleError
from runtime.himar_config import HiMARSamplingConfig
from runtime.schedule import parse_schedule
from scripts.cli import ProgressBar, parser, run

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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
        "--batch", default="1", metavar="B,B,…", help="numbers of images to build for, such as 1,8"
    )
    p.add_argument(
        "--gpu",
        metavar="SM,SM,…",
        help="compute capabilities to build for ahead of time, such as sm86,sm89 "
        "(default: this machine's GPU)",
    )
    p.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="profiles",
        help="one engine per trunk with a profile per scale, or one engine per step graph",
    )
    p.add_argument(
        "--library", choices=FLAVOURS, help="which TensorRT (default: the one installed)"
    )
    p.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default="auto",
        help="plugin library, or the graphs' function body; auto takes the plugin if it is built",
    )
    p.add_argument(
        "--plugin", type=Path, metavar="FILE", help="plugin library (default: where it is built)"
    )
    p.add_argument(
        "--max-workspace",
        metavar="SIZE",
        help="limit on an engine's scratch memory, such as 512M or 4G (default: the GPU's memory)",
    )
    p.add_argument(
        "--extra",
        metavar="KIND,…",
        help=f"kinds of graph to build in addition: {', '.join(OPTIONAL)}",
    )
    p.add_argument(
        "--leave-out",
        metavar="KIND,…",
        help="kinds of graph not to build, since another backend runs them, such as decode",
    )
    p.add_argument(
        "--kernels",
        choices=("auto", "off"),
        default="auto",
        help="auto: build nothing for graphs that the plugin library's own kernels run on this "
        "GPU; off: build all engines, for Pipeline.load(transformer='engine', decoder='engine')",
    )
    p.add_argument(
        "--guidance",
        choices=GUIDANCES,
        default="default",
        help="passes with the unconditional half of the batch or without it, as the default "
        "settings run them; any: both, for traces and other settings",
    )
    p.add_argument(
        "--stages",
        metavar="KIND=N,…",
        help=f"cut graphs of a kind, of {', '.join(STAGED)}, into N engines that run one after "
        "another; 1 = whole (default: whole, but cut where this machine's GPU cannot run it so)",
    )
    p.add_argument(
        "--jobs",
        type=int,
        help="builds at a time (default: 1 where TensorRT measures kernels on the GPU, else "
        "up to 8)",
    )
    p.add_argument(
        "--record-schedules",
        default="default",
        metavar="S,S,…",
        help="mask schedules to record generations of HMAR with, of default, fast, quality, "
        "cosine:N, each guided as by the bundle's default settings; off: record nothing, for "
        "Hi-MAR too",
    )
    p.add_argument(
        "--only-recordings", action="store_true", help="build no engines, record generations alone"
    )
    p.add_argument("--force", action="store_true", help="build and record all again")
    return p.parse_args()


def parse_list(text: str | None, option: str) -> tuple[str, ...]:
    """Items separated by commas; () for an empty text."""
    items = tuple(part.strip() for part in text.split(",")) if text else ()
    if not all(items):
        raise ValueError(f"{option} must be separated by commas, got {text!r}")
    return items


def parse_batches(text: str) -> tuple[int, ...]:
    items = parse_list(text, "--batch")
    if not items or not all(item.isdigit() for item in items):
        raise ValueError(f"--batch must be numbers separated by commas, such as 1,8, got {text!r}")
    return tuple(sorted({int(item) for item in items}))


def parse_kinds(text: str | None, option: str) -> tuple[Kind, ...]:
    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    items = parse_list(text, option)
    if unknown := [item for item in items if item not in kinds]:
        raise ValueError(f"{option}: {unknown} are no kinds of graph; {', '.join(kinds)} are")
    return tuple(kinds[item] for item in items)


def parse_stages(text: str | None) -> dict[Kind, int]:
    items = [item.partition("=") for item in parse_list(text, "--stages")]
    if not all(count.isdigit() for _, _, count in items):
        raise ValueError(f"--stages must be such as decode=8,encode=1, got {text!r}")
    kinds = parse_kinds(",".join(kind for kind, _, _ in items), "--stages")
    return dict(zip(kinds, (int(count) for _, _, count in items), strict=True))


def parse_size(text: str | None) -> int | None:
    """Bytes, from a number with K, M or G."""
    if text is None:
        return None
    unit = UNITS.get(text[-1:].upper())
    number = text[:-1] if unit else text
    if not number.isdigit():
        raise ValueError(f"--max-workspace must be a size such as 512M or 4G, got {text!r}")
    return int(number) * (unit or 1)


def kinds_of_kernels(bundle: Bundle, gpus: Sequence[str], batches: Sequence[int]) -> set[Kind]:
    """Kinds of graph that need no engine on any of these GPUs; says so."""
    left_out = set.intersection(*(kinds_with_kernels(bundle, gpu, batches) for gpu in gpus))
    if left_out:
        print(f"no engines for {', '.join(sorted(left_out))}: the plugin library has kernels")
    return left_out


def record(
    bundle: Bundle,
    gpus: Sequence[str],
    local: str | None,
    batches: Sequence[int],
    schedules: str,
    *,
    force: bool,
) -> None:
    """Records generations for every GPU, and says so.

    Args:
        local: this machine's GPU, whose number of multiprocessors is taken into account.

    Raises:
        BackendUnavailableError: the plugin library is not built, or has nothing for one of them.
        EngineIncompatibleError: kernels do not run all, and there are no engines that fit.
    """
    settings = parse_settings(bundle, parse_list(schedules, "--record-schedules"))
    for gpu in gpus:
        config = BackendConfig(name="trt")
        engines = None
        if not need_no_engines(bundle, config, gpu, batches):
            engines = find_engines_for(bundle, gpu)
        count = local_multiprocessors() if gpu == local else MULTIPROCESSORS
        library = Library.built(gpu, count)
        made = make_recordings(
            bundle, gpu, batches, settings, library=library, engines=engines, force=force
        )
        by = "kernels" if engines is None else f"kernels and {engines.folder.name}"
        print(
            f"recordings   {made.folder}: {len(made.index.recordings)}, by {by}, "
            f"{made.index.data_file.nbytes / 1e6:.1f} MB of weights that the bundle lacks"
        )


def parse_settings(bundle: Bundle, schedules: Sequence[str]) -> list[Settings]:
    """The default settings of a bundle, of HMAR with these mask schedules."""
    if bundle.manifest.family == "himar":
        return [HiMARSamplingConfig.defaults(bundle.manifest)]
    defaults, patch_nums = SamplingConfig.defaults(bundle.manifest), bundle.manifest.hmar.patch_nums
    return [
        replace(defaults, mask_schedule=parse_schedule(name, defaults.mask_schedule, patch_nums))
        for name in schedules
    ]


def find_gpu(*, is_needed: bool) -> str | None:
    """This machine's GPU; its packages need not be there if no engine is for it."""
    try:
        return local_gpu()
    except BackendUnavailableError:
        if is_needed:
            raise
        return None


def main() -> None:
    args = parse_args()
    bundle = Bundle.open(args.bundle)
    bundle.check_files()
    gpus, batches = parse_list(args.gpu, "--gpu"), parse_batches(args.batch)
    local = find_gpu(is_needed=not gpus)
    can_record = args.record_schedules != "off"
    if not args.only_recordings:
        build(args, bundle, gpus, batches, local)
    elif not can_record:
        raise ValueError("--only-recordings: nothing to record with --record-schedules off")
    if not can_record:
        return
    try:
        targets = gpus or [required_gpu(local)]
        record(bundle, targets, local, batches, args.record_schedules, force=args.force)
    except (BackendUnavailableError, EngineIncompatibleError) as error:
        if args.only_recordings:
            raise
        print(f"recordings   none: {error}")


def required_gpu(local: str | None) -> str:
    """This machine's GPU."""
    if local is None:
        raise BackendUnavailableError(
            "there is no GPU on this machine to record for: name those to record for (--gpu sm90)"
        )
    return local


def build(
    args: argparse.Namespace,
    bundle: Bundle,
    gpus: Sequence[str],
    batches: tuple[int, ...],
    local: str | None,
) -> None:
    """Builds the engines, and says what was built."""
    leave_out = set(parse_kinds(args.leave_out, "--leave-out"))
    if args.kernels == "auto" and args.layout == "profiles":
        leave_out |= kinds_of_kernels(bundle, gpus or [str(local)], batches)
    options = EngineOptions(
        batches=batches,
        layout=args.layout,
        guidance=args.guidance,
        extra=parse_kinds(args.extra, "--extra"),
        leave_out=tuple(sorted(leave_out)),
        stages=parse_stages(args.stages),
        workspace_bytes=parse_size(args.max_workspace),
    )
    try:
        library = import_tensorrt(args.library)
    except BackendUnavailableError as error:
        if plan_engines(bundle.manifest, options):
            raise
        print(f"engines      none to build, so that it does not matter: {error}")
        return
    target = choose_target(
        library,
        gpus,
        local,
        attention=args.attention,
        plugin=args.plugin,
    )
    with ProgressBar() as progress:
        report = build_engines(
            bundle,
            target,
            options,
            force=args.force,
            require_plugin=args.attention == "plugin",
            jobs=args.jobs,
            progress=progress,
        )
    print(report.summary())


if __name__ == "__main__":
    run(main, DeployError)
