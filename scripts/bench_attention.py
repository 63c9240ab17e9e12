"""Time the attention kernel beside other ways to compute the same thing, on a CUDA GPU.

"ours" is the kernel as Triton compiles it at first use, "ours (library)" the one of the built
plugin library, where there is one. Every call is first compared with ours, then timed in a CUDA
graph. The floor of a shape is the larger of its operations over a measured matrix product's rate
and its bytes over a measured copy's.
With --from-json no GPU is needed: the table and plot of earlier runs are made again.

example:
  python scripts/bench_attention.py --json attention.json --plot attention.png
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from plugins_trt.block_sparse_attn.launcher import Launcher, params_of
from plugins_trt.block_sparse_attn.spec import Attributes
from plugins_trt.loader import PluginError, find_library
from scripts.attention_rivals import DIAGONAL_ONLY, RIVALS, Call, bounds_of
from scripts.attention_shapes import Shape, pyramid_shapes, short_packs, single_shapes
from scripts.ceilings import Ceilings
from scripts.cli import parser, run
from scripts.gpu_timing import measure_ceilings, time_graph

logger = logging.getLogger(__name__)
OURS, LIBRARY = "ours", "ours (library)"
TOLERANCE = 0.02  # of a half-precision result against another one
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--heads", default="16,20,24,30,36", metavar="H,H,…", help="of the pyramids")
    p.add_argument(
        "--rivals", default=",".join(RIVALS), metavar="R,R,…", help="what to compare with"
    )
    p.add_argument(
        "--shapes", default="pyramids,norm,singles,short", metavar="S,S,…", help="which groups"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    p.add_argument(
        "--from-json", type=Path, nargs="+", metavar="FILE", help="figures of earlier runs, joined"
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (.png)")
    return p.parse_args()


def shapes_of(groups: str, heads: list[int]) -> list[Shape]:
    known = {
        "pyramids": lambda: pyramid_shapes(heads, (False,)),
        "norm": lambda: pyramid_shapes(heads[:2], (True,)),
        "singles": lambda: single_shapes(16, 2),
        "short": lambda: short_packs(16),
    }
    chosen = groups.split(",")
    if unknown := set(chosen) - set(known):
        raise ValueError(f"--shapes takes {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return [shape for group in chosen for shape in known[group]()]


@cache
def built_library() -> Launcher | None:
    try:
        return Launcher(find_library("trt"))
    except PluginError as error:
        logger.warning("%s is left out: %s", LIBRARY, error)
        return None


def library_call(
    library: Launcher,
    qkv: torch.Tensor,
    bounds: torch.Tensor,
    scale_mul: torch.Tensor | None,
    attributes: Attributes,
) -> Call:
    B, T, _, H, d = qkv.shape
    parts, out = qkv.unbind(2), qkv.new_empty((B, T, H * d))
    num_bytes = library.workspace_bytes(qkv.dtype, attributes.qk_l2_norm, parts[0].shape)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=qkv.device)
    params = params_of(*parts, out, bounds, scale_mul, workspace, attributes)

    def call(workspace: torch.Tensor = workspace) -> torch.Tensor:  # keeps the workspace alive
        status = library.launch(params, torch.cuda.current_stream().cuda_stream)
        if status:
            raise RuntimeError(f"bsa_launch: CUDA error {status}")
        return out

    return call


def calls_of(shape: Shape, rivals: list[str]) -> dict[str, Call]:
    """Ours first, then the rivals that can do it."""
    from plugins_trt.block_sparse_attn.jit import run_kernel

    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(
        (shape.batch, shape.length, 3, shape.heads, shape.head_dim),
        generator=generator,
        device="cuda",
    ).half()
    scale_mul = torch.full((shape.heads,), 8.0, device="cuda") if shape.qk_l2_norm else None
    bounds = bounds_of(shape.lengths, "cuda")
    attributes = Attributes(
        sm_scale=1.0 if shape.qk_l2_norm else shape.head_dim**-0.5,
        pattern=shape.pattern,
        qk_l2_norm=shape.qk_l2_norm,
    )
    out = qkv.new_empty((shape.batch, shape.length, shape.heads * shape.head_dim))
    calls: dict[str, Call] = {
        OURS: lambda: run_kernel(*qkv.unbind(2), bounds, scale_mul, attributes, out=out)
    }
    if (library := built_library()) is not None:
        calls[LIBRARY] = library_call(library, qkv, bounds, scale_mul, attributes)
    for name in rivals:
        if name in DIAGONAL_ONLY and shape.pattern != "block_diagonal":
            continue
        try:
            calls[name] = RIVALS[name](qkv, list(shape.lengths), shape.pattern, scale_mul)
        except ImportError as error:
            logger.info("%s left out: %s", name, error)
    return calls


def measure(shape: Shape, rivals: list[str], ceilings: Ceilings) -> list[Row]:
    rows: list[Row] = []
    expected = None
    for name, call in calls_of(shape, rivals).items():
        row: Row = {
            "shape": shape.name, "pattern": shape.pattern, "l2_norm": shape.qk_l2_norm,
            "batch": shape.batch, "heads": shape.heads, "tokens": shape.length, "what": name,
        }  # fmt: skip
        try:
            out = call().clone()
            expected = out if expected is None else expected
            error = ((out - expected).float().norm() / expected.float().norm()).item()
            if not error < TOLERANCE:
                raise ValueError(f"{name} on {shape.name} differs from ours by {error:.3g}")
            timing = time_graph(call)
        except torch.OutOfMemoryError:  # any other error would spoil what follows
            rows.append(row | {"error": "out of memory"})
            continue
        ms, floor_ms = timing.median_ms, ceilings.floor_ms(shape.flops, shape.num_bytes())
        rows.append(
            row
            | timing.as_dict()
            | {
                "tflops": shape.flops / ms * 1e-9,
                "gbytes_per_s": shape.num_bytes() / ms * 1e-6,
                "floor_share": floor_ms / ms,
            }
        )
    return rows


def print_rows(rows: list[Row]) -> None:
    ours_ms = rows[0]["median_ms"]
    print(
        "{shape} {pattern}{norm} B={batch} H={heads}".format(
            **rows[0], norm=" l2" if rows[0]["l2_norm"] else ""
        )
    )
    for row in rows:
        if "error" in row:
            print(f"  {row['what']:15} {row['error']}")
            continue
        print(
            f"  {row['what']:15} {row['median_ms'] * 1e3:9.1f} us  "
            f"({row['p10_ms'] * 1e3:.1f} to {row['p90_ms'] * 1e3:.1f})  {row['tflops']:6.1f} "
            f"TFLOP/s  {row['gbytes_per_s']:6.0f} GB/s  {row['floor_share']:4.0%} of the floor  "
            f"{row['median_ms'] / ours_ms:5.2f} x ours"
        )


def header() -> dict[str, str]:
    import triton

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": triton.__version__, "cuda": torch.version.cuda or "", "commit": commit,
    }  # fmt: skip


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise ValueError("no CUDA GPU here; --from-json FILE shows an earlier run")
    rivals = args.rivals.split(",")
    if unknown := set(rivals) - set(RIVALS):
        raise ValueError(f"--rivals takes {', '.join(RIVALS)}, got {', '.join(sorted(unknown))}")
    ceilings = measure_ceilings()
    report: dict[str, Any] = header() | {
        "tflops": ceilings.tflops, "gbytes_per_s": ceilings.gbytes_per_s, "rows": []
    }  # fmt: skip
    for shape in shapes_of(args.shapes, [int(h) for h in args.heads.split(",")]):
        rows = measure(shape, rivals, ceilings)
        print_rows(rows)
        report["rows"] += rows
        torch.compiler.reset()
        if args.json is not None:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report with the rows of all; a call that was timed twice keeps its first row."""
    rows: dict[tuple[Any, ...], Row] = {}
    for report in reports:
        for row in report["rows"]:
            rows.setdefault((*shape_key(row), row["what"]), row)
    order = {key: i for i, key in enumerate(dict.fromkeys(map(shape_key, rows.values())))}
    return reports[0] | {"rows": sorted(rows.values(), key=lambda row: order[shape_key(row)])}


def shape_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("shape", "pattern", "l2_norm", "batch", "heads", "tokens"))


def print_report(report: dict[str, Any]) -> None:
    for _, rows in groupby(report["rows"], key=shape_key):
        print_rows(list(rows))


def main() -> None:
    args = parse_args()
    if args.from_json is not None:
        report = joined([json.loads(path.read_text()) for path in args.from_json])
        print_report(report)
    else:
        report = benchmark(args)
    print({key: value for key, value in report.items() if key != "rows"})
    if args.plot is not None:
        from scripts.attention_plot import plot

        plot(report, args.plot)


if __name__ == "__main__":
    run(main, OSError)
