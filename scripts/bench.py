"""Time whole generations of a bundle, and the steps that they consist of.

Every backend named is measured at every batch: labels in, uint8 images on the host out. Backends
that are not available are reported and left out. The parts come from a second measurement, step by
step; the transformer passes include their heads (scripts/profile_step.py tells layers apart).
With --ckpt and --vae, PyTorch generates too: the reference, and on a CUDA GPU also with compiled
blocks and a CUDA graph for every pass.

The floor is the time that the counted operations and bytes would take at the rates of a large
matrix product and a large copy, measured in the same run. For kernels, mark the steps and use
Nsight Systems: nsys profile -t cuda,nvtx python scripts/bench.py --nvtx …

example:
  python scripts/bench.py --bundle bundles/hmar-d16 --batch 1,8 --json bench.json --plot bench.png
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hmar.errors import CheckpointError
from runtime.bundle import Bundle, Manifest
from runtime.config import SamplingConfig
from runtime.errors import DeployError
from runtime.himar_config import HiMARSamplingConfig
from runtime.schedule import parse_schedule
from scripts import himar_generate
from scripts.build_engines import parse_batches, parse_list
from scripts.chrome_trace import chrome_trace
from scripts.cli import parse_placement, parser, run
from scripts.families import check_options
from scripts.generation_bench import Bench, BenchConfig
from scripts.generation_table import lines
from scripts.generation_times import Effort, Sampling
from scripts.machine import describe


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--bundle", type=Path, metavar="DIR", help="from scripts/export.py")
    p.add_argument("--batch", default="1,8,64", metavar="B,B,…", help="numbers of images")
    p.add_argument(
        "--backends", default="ort-cpu,ort-cuda,trt", metavar="B,B,…", help="what to measure"
    )
    p.add_argument("--ckpt", type=Path, nargs="+", metavar="FILE", help="checkpoint, for PyTorch")
    p.add_argument("--vae", type=Path, metavar="FILE", help="tokenizer, for PyTorch")
    p.add_argument("--cfg", type=float, help="guidance strength (default: the bundle's)")
    p.add_argument(
        "--schedule",
        default="default",
        metavar="S",
        help="masked passes: default, fast, quality, cosine:N, or JSON",
    )
    himar_generate.add_sampling_options(p)
    p.add_argument("--engines", type=Path, metavar="DIR", help="for trt: folder of engines")
    p.add_argument(
        "--place", metavar="KIND=BACKEND,…", help="for trt: graphs elsewhere, as decode=ort-cpu"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = one per core")
    p.add_argument("--nvtx", action="store_true", help="mark steps with NVTX ranges, for nsys")
    p.add_argument("--runs", type=int, default=20, help="timed generations")
    p.add_argument("--warmup", type=int, default=2, help="generations before those")
    p.add_argument(
        "--max-seconds", type=float, default=60, help="stop a measurement then, after three runs"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    p.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (.png)")
    p.add_argument(
        "--profile", type=Path, metavar="FILE", help="also write the steps for ui.perfetto.dev"
    )
    p.add_argument("--from-json", type=Path, metavar="FILE", help="show an earlier run instead")
    args = p.parse_args()
    if (args.bundle is None) == (args.from_json is None):
        p.error("give either --bundle or --from-json")
    if (args.ckpt is None) != (args.vae is None):
        p.error("--ckpt and --vae go together")
    return args


def make_sampling(args: argparse.Namespace, manifest: Manifest) -> Sampling:
    check_options(args, manifest.family)
    if manifest.family == "himar":
        return himar_generate.sampling_config(args, HiMARSamplingConfig.defaults(manifest))
    defaults = SamplingConfig.defaults(manifest)
    return replace(
        defaults,
        cfg=defaults.cfg if args.cfg is None else args.cfg,
        mask_schedule=parse_schedule(
            args.schedule, defaults.mask_schedule, manifest.hmar.patch_nums
        ),
    )


def described(bench: Bench) -> str:
    """The settings in words."""
    sampling, kinds = (
        bench.config.sampling,
        [bench.manifest.graphs[step.graph].kind for step in bench.steps],
    )
    if not isinstance(sampling, HiMARSamplingConfig):
        return f"cfg {sampling.cfg:g}, {kinds.count('mask')} masked passes"
    return (
        f"cfg {sampling.cfg:g}, re-cfg {sampling.re_cfg:g} ({sampling.cfg_schedule}), "
        f"{kinds.count('pivot')} + {kinds.count('dense')} steps, diffusion steps "
        f"{sampling.pivot_diffusion_steps} and {sampling.dense_diffusion_steps}"
    )


def make_config(args: argparse.Namespace, manifest: Manifest) -> BenchConfig:
    return BenchConfig(
        bundle=args.bundle,
        batches=parse_batches(args.batch),
        backends=parse_list(args.backends, "--backends"),
        sampling=make_sampling(args, manifest),
        effort=Effort(warmup=args.warmup, runs=args.runs, max_seconds=args.max_seconds),
        checkpoint=None if args.ckpt is None else (args.ckpt, args.vae),
        placement=parse_placement(args.place),
        engines=args.engines,
        threads=args.threads,
        nvtx=args.nvtx,
    )


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    manifest = Bundle.open(args.bundle).manifest
    bench = Bench(manifest, make_config(args, manifest))
    report: dict[str, Any] = {
        "machine": describe(),
        "bundle": args.bundle.name,
        "precision": manifest.precision,
        "side_px": manifest.model.image_side_px,
        "settings": described(bench),
        "image_flops": bench.image_flops(),
        "ceilings": {},
        "rows": [],
    }
    for row in bench.rows():
        report["rows"].append(row)
        report["ceilings"] = {d: asdict(c) for d, c in bench.ceilings.items() if c is not None}
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.profile is not None:
        args.profile.write_text(json.dumps(chrome_trace(bench.spans)))
    return report


def main() -> None:
    args = parse_args()
    report = benchmark(args) if args.from_json is None else json.loads(args.from_json.read_text())
    print("\n".join(lines(report)))
    if args.plot is not None:
        from scripts.generation_plot import plot

        plot(report, args.plot)


if __name__ == "__main__":
    run(main, DeployError, CheckpointError, OSError)
