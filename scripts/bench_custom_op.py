"""Time the attention op on ONNX Runtime's CPU provider: custom op against the function body.

Both are one-node models on the same float32 inputs; their results are compared first.

example:
  python scripts/bench_custom_op.py --json custom_op.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plugins_trt.block_sparse_attn.onnx_function import function_text
from plugins_trt.block_sparse_attn.spec import PATTERNS, Attributes
from plugins_trt.loader import PluginError, register_ort
from scripts.attention_shapes import PYRAMIDS
from scripts.cli import parser, run

PACKS = {
    "pyramid-256": [n * n for n in PYRAMIDS["pyramid-256"]],
    "one scale, 256": [256],
    "one scale, 16": [16],
    "32 short": [1, 4, 9, 16] * 8,
}
MAX_ERROR = 1e-5


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--library", type=Path, metavar="FILE", help="libhmar_ort.so, if not built in")
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


def times_ms(made: ort.InferenceSession, feeds: dict[str, np.ndarray], runs: int) -> np.ndarray:
    """p10, median and p90 of a run, after a warm-up."""
    made.run(None, feeds)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        made.run(None, feeds)
        times.append((time.perf_counter() - start) * 1e3)
    return np.percentile(times, (10, 50, 90))


def main() -> None:
    args, rng, rows = parse_args(), np.random.default_rng(0), []
    print(
        f"onnxruntime {ort.__version__}, B={args.batch} H={args.heads} d={args.head_dim}, float32"
    )
    print(f"{'pattern':14} {'blocks':14} {'function body, ms':>24} {'custom op, ms':>24} {'×':>5}")
    for pattern, (name, lengths) in itertools.product(PATTERNS, PACKS.items()):
        attributes = Attributes(sm_scale=1.0, pattern=pattern, qk_l2_norm=True)
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
            raise ValueError(f"{pattern}, {name}: results differ by {error:.1e}")
        figures = [times_ms(made, feeds, args.runs) for made in (body, custom)]
        rows.append({"pattern": pattern, "blocks": name, **_named(figures)})
        texts = (f"{f[1]:9.2f} ({f[0]:.2f}–{f[2]:.2f})" for f in figures)
        print(f"{pattern:14} {name:14}", *(f"{t:>24}" for t in texts), f"{_ratio(figures):5.1f}")
    if args.json:
        args.json.write_text(json.dumps({"onnxruntime": ort.__version__, "rows": rows}, indent=1))


def _named(figures: list[np.ndarray]) -> dict[str, dict[str, float]]:
    keys = ("p10_ms", "median_ms", "p90_ms")
    return {
        name: dict(zip(keys, map(float, f), strict=True))
        for name, f in zip(("function", "custom_op"), figures, strict=True)
    }


def _ratio(figures: list[np.ndarray]) -> float:
    return float(figures[0][1] / figures[1][1])


if __name__ == "__main__":
    run(main, PluginError)
