"""Time the attention op on ONNX Runtime's CPU provider: custom op against the function body.

Both are one-node models on the same float32 inputs; their results are compared first. With a
bundle, the scoring of whole pyramids of tokens is timed too.

example:
  python scripts/bench_custom_op.py --bundle bundles/hmar-d16 --json custom_op.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx.parser
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plugins_trt.block_sparse_attn.onnx_function import function_text
from plugins_trt.block_sparse_attn.spec import Attributes, Pattern
from plugins_trt.loader import PluginError, register_ort
from runtime.config import ATTENTION_KINDS
from runtime.errors import DeployError
from runtime.pipeline import Pipeline
from scripts.attention_shapes import PYRAMIDS
from scripts.cli import parser, run

PACKS = {
    "pyramid-256": [n * n for n in PYRAMIDS["pyramid-256"]],
    "one scale, 256": [256],
    "one scale, 16": [16],
    "32 short": [1, 4, 9, 16] * 8,
}
ATTRIBUTES = {"sm_scale": 1.0, "qk_l2_norm": True}
MAX_ERROR = 1e-5
Figures = list[np.ndarray]  # function body, custom op


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--library", type=Path, metavar="FILE", help="libhmar_ort.so (default: found)")
    p.add_argument("--bundle", type=Path, metavar="DIR", help="time the scoring of its model too")
    p.add_argument("--threads", type=int, default=0, help="0 = one per core")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--heads", type=int, default=16)
    p.add_argument("--head-dim", type=int, default=64)
    p.add_argument("--runs", type=int, default=25)
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return p.parse_args()


def model(attributes: Attributes, heads: int, head_dim: int) -> bytes:
    text = f"""<ir_version: 10, opset_import: ["": 20, "hmar": 1]>
    g (float[B, T, 3, {heads}, {head_dim}] qkv, int32[S] cu_seqlens, float[{heads}] scale_mul)
        => (float[B, T, {heads * head_dim}] o)
    {{ o = hmar.BlockSparseAttention
        <sm_scale: float = {attributes.sm_scale}, pattern: string = "{attributes.pattern}",
         qk_l2_norm: int = {int(attributes.qk_l2_norm)}> (qkv, cu_seqlens, scale_mul) }}
    """
    return onnx.parser.parse_model(text + function_text(attributes, 20)).SerializeToString()


def session(graph: bytes, args: argparse.Namespace, *, custom: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    if custom:
        register_ort(options, args.library)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def times_ms(calls: Sequence[Callable[[], object]], runs: int) -> Figures:
    """p10, median and p90 of each call, after a warm-up; in turn, as other work comes and goes."""
    times = np.empty((len(calls), runs + 1))
    for run_idx in range(runs + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i, run_idx] = (time.perf_counter() - start) * 1e3
    return list(np.percentile(times[:, 1:], (10, 50, 90), axis=1).T)


def time_op(args: argparse.Namespace, pattern: Pattern, lengths: Sequence[int]) -> Figures:
    rng, attributes = np.random.default_rng(0), Attributes(pattern=pattern, **ATTRIBUTES)
    graph = model(attributes, args.heads, args.head_dim)
    shape = (args.batch, sum(lengths), 3, args.heads, args.head_dim)
    feeds = {
        "qkv": rng.standard_normal(shape, np.float32),
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
        "scale_mul": np.full(args.heads, 4, np.float32),
    }
    body, custom = (session(graph, args, custom=c) for c in (False, True))
    error = np.abs(body.run(None, feeds)[0] - custom.run(None, feeds)[0]).max()
    if not error < MAX_ERROR:
        raise ValueError(f"{pattern}, {lengths}: results differ by {error:.1e}")
    return times_ms([partial(made.run, None, feeds) for made in (body, custom)], args.runs)


def time_score(args: argparse.Namespace) -> Figures:
    with ExitStack() as stack:
        load = partial(Pipeline.load, args.bundle, "ort-cpu", threads=args.threads)
        pipelines = [stack.enter_context(load(attention=kind)) for kind in ATTENTION_KINDS]
        sides = pipelines[0].manifest.model.patch_nums
        tokens = [np.zeros((args.batch, n * n), np.int32) for n in sides]
        calls = [partial(p.score, [-1] * args.batch, tokens) for p in pipelines]
        return times_ms(calls, args.runs)


def main() -> None:
    args = parse_args()
    print(
        f"onnxruntime {ort.__version__}, B={args.batch} H={args.heads} d={args.head_dim}, float32"
    )
    print(f"{'':29} {'function body, ms':>28} {'custom op, ms':>28} {'×':>5}")
    rows = []

    def report(name: str, figures: Figures) -> None:
        texts = (f"{f[1]:9.2f} ({f[0]:.2f}–{f[2]:.2f})" for f in figures)
        ratio = figures[0][1] / figures[1][1]
        print(f"{name:29}", *(f"{t:>28}" for t in texts), f"{ratio:5.1f}", flush=True)
        rows.append({"name": name, "p10_median_p90_ms": [list(map(float, f)) for f in figures]})

    for pattern, (name, lengths) in itertools.product(get_args(Pattern), PACKS.items()):
        report(f"{pattern} {name}", time_op(args, pattern, lengths))
    if args.bundle:
        report("score", time_score(args))
    if args.json:
        args.json.write_text(json.dumps({"onnxruntime": ort.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    run(main, PluginError, DeployError)
