"""Time attention within images beside PyTorch's, on a CUDA GPU.

The kernels are all that the built plugin library has for it; the one that passes take is marked.
PyTorch's is scaled_dot_product_attention on queries, keys and values that lie ready, normalised
where the kernels normalise.

examples:
  python scripts/bench_image_attention.py --images 128 --heads 16 --tokens 36,64,100,169,256
  python scripts/bench_image_attention.py --images 64 --heads 12 --tokens 200,384 --plain
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins_trt.loader import PluginError, open_library
from plugins_trt.transformer.tiles import HEAD_DIM
from runtime.backends.cuda import CudaDevice
from runtime.backends.kernel_library import KernelLibrary
from runtime.errors import DeployError
from runtime.launches import blocks
from runtime.layer_plan import LayerPlanner
from scripts.cli import parser, run
from scripts.gpu_timing import time_graph

CALLS = 5  # in a row, as between layers
TOLERANCE = 3e-3  # of a result against PyTorch's, relative
SCALE = 10.0  # of unit-length queries and keys


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=128, help="guided ones counted twice")
    p.add_argument("--heads", type=int, default=16, help=f"of {HEAD_DIM} values")
    p.add_argument("--tokens", default="16,36,64,100,169,256", metavar="L,L,…", help="of an image")
    p.add_argument("--plain", action="store_true", help="as of Hi-MAR, without q/k L2 norm")
    return p.parse_args()


def attend(q_NHld: Tensor, k_NHld: Tensor, v_NHld: Tensor, *, is_plain: bool) -> Tensor:
    y_NHld = F.scaled_dot_product_attention(
        q_NHld, k_NHld, v_NHld, scale=HEAD_DIM**-0.5 if is_plain else SCALE
    )
    return y_NHld.transpose(1, 2).flatten(2)


def launches(
    kernels: KernelLibrary, name: str, qkv: Tensor, scale: Tensor, out: Tensor, *, is_plain: bool
) -> Callable[[], None]:
    """CALLS launches of a kernel."""
    images, length, _, heads, _ = qkv.shape
    entry: Mapping[str, Any] = kernels.table[name]
    sizes = {"length": length, "width": heads * HEAD_DIM, "images": images}
    arguments: dict[str, int] = {"qkv": qkv.data_ptr(), "out": out.data_ptr()}
    arguments |= {key: size for key, size in sizes.items() if key in entry["parameters"]}
    if not is_plain:
        arguments["scale_mul"] = scale.data_ptr()
    grid = (blocks(length, entry["constants"]["BLOCK_Q"]), heads, images)

    def call() -> None:
        for _ in range(CALLS):
            kernels.launch(name, grid, torch.cuda.current_stream().cuda_stream, arguments)

    return call


def chosen(kernels: KernelLibrary, images: int, heads: int, length: int, *, is_plain: bool) -> str:
    """The kernel that a pass takes."""
    width = heads * HEAD_DIM
    planner = LayerPlanner(
        kernels.table, width=width, rows=images * length, length=length, stream="x"
    )
    planner.attend(heads, images, length, "" if is_plain else "scale_mul")
    (step,) = planner.plan().steps
    return step.kernel


def print_times(
    kernels: KernelLibrary, images: int, heads: int, length: int, *, is_plain: bool
) -> None:
    g = torch.Generator("cuda").manual_seed(0)
    shape = (images, length, 3, heads, HEAD_DIM)
    qkv = torch.randn(shape, generator=g, device="cuda").half()
    q, k, v = (t.contiguous() for t in qkv.permute(2, 0, 3, 1, 4))
    if not is_plain:
        q, k = (F.normalize(t.float(), dim=-1).half() for t in (q, k))
    expected = attend(q, k, v, is_plain=is_plain).float()
    sdpa_us = 1e3 * time_graph(lambda: attend(q, k, v, is_plain=is_plain)).median_ms
    print(f"{images} images, {heads} heads, {length} tokens: PyTorch {sdpa_us:.1f} us")
    scale = torch.full((heads,), SCALE, device="cuda")
    part = "plain_attention" if is_plain else "attention"
    used = chosen(kernels, images, heads, length, is_plain=is_plain)
    for name, entry in kernels.table.items():
        of = entry["constants"]
        is_too_small = of.get("IS_WHOLE", 0) and of["BLOCK_L"] < length
        if not {part, f"wide_{part}"} & entry["uses"].keys() or is_too_small:
            continue
        out = torch.full_like(expected, torch.nan, dtype=torch.half)
        call = launches(kernels, name, qkv, scale, out, is_plain=is_plain)
        call()
        error = float((out.float() - expected).norm() / expected.norm())
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from PyTorch by {error:.3g}")
        us = 1e3 * time_graph(call).median_ms / CALLS
        print(f"  {us:8.1f} us  {name}{'  (taken)' * (name == used)}")


def main() -> None:
    args = parse_args()
    device = CudaDevice()
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    kernels = KernelLibrary(open_library("trt").path, "transformer", device)
    for length in map(int, args.tokens.split(",")):
        print_times(kernels, args.images, args.heads, length, is_plain=args.plain)


if __name__ == "__main__":
    run(main, DeployError, PluginError, RuntimeError)
