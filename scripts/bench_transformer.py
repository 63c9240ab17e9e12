"""Time the transformer's linear layers beside cuBLAS, on a CUDA GPU.

The kernels are those of the built plugin library; --all tries every one that a layer has. cuBLAS
computes the product and the bias only (of float32 in TF32, for the head). Weights change from call
to call, so that they come from memory as they do in a pass.

example:
  python scripts/bench_transformer.py --rows 8,72,512,4096,32768
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from plugins_trt.loader import PluginError, open_library
from plugins_trt.transformer.tiles import LAYERS, Layer
from runtime.backends.cuda import CudaDevice
from runtime.backends.kernel_library import KernelLibrary
from runtime.errors import DeployError
from runtime.launches import ARRIVALS, KernelTable
from runtime.layer_plan import LayerPlanner, Modulation
from scripts.cli import parser, run
from scripts.gpu_timing import time_graph

L2_NBYTES = 50 << 20  # of an H100: weights of a layer and its copies are more
TOLERANCE = 2e-3  # of a result against that of the first kernel


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument("--width", type=int, default=1024, help="C of the model")
    p.add_argument("--vocab", type=int, default=4096, help="columns of the head")
    p.add_argument("--rows", default="8,32,72,200,512,2048,8192,32768", metavar="R,R,…")
    p.add_argument(
        "--layers", default=",".join(LAYERS), metavar="L,L,…", help="of " + ", ".join(LAYERS)
    )
    p.add_argument("--all", action="store_true", help="every kernel of a layer, not the chosen one")
    return p.parse_args()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One layer of so many rows, with operands on the GPU; weights are several copies."""

    layer: Layer
    x_Rk: Tensor
    weights: list[Tensor]
    bias: Tensor
    residual_Rn: Tensor
    ada_1n: Tensor

    @classmethod
    def random(cls, layer: Layer, rows: int, width: int, vocab: int) -> Problem:
        depth, columns = {
            "qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width),
            "fc2": (4 * width, width), "head": (2 * width, vocab), "silu": (width, width),
            "ada": (width, 38 * width), "gelu_erf": (width, 4 * width),
        }[layer]  # fmt: skip
        g = torch.Generator("cuda").manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, device="cuda").half()

        copies = 1 + L2_NBYTES // (depth * columns * 2)
        bias = random(columns)
        return cls(
            layer=layer,
            x_Rk=random(rows, depth),
            weights=[random(depth, columns) * depth**-0.5 for _ in range(copies)],
            bias=bias.float() if layer == "head" else bias,
            residual_Rn=random(rows, columns),
            ada_1n=random(1, columns),
        )

    @property
    def flops(self) -> int:
        """Of the product, which the head computes from the halves of its operands."""
        return (1 if self.layer == "head" else 2) * len(self.x_Rk) * self.weights[0].numel()

    def ours(self, kernels: KernelLibrary, name: str, out_Rn: Tensor) -> Callable[[], None]:
        """All copies of the layer by a kernel, one after the other."""
        (rows, depth), width = self.x_Rk.shape, out_Rn.shape[1]
        only: KernelTable = {name: {**kernels.table[name], "uses": {self.layer: [(0, 0)]}}}
        planner = LayerPlanner(only, width=width, rows=rows, length=rows, stream="residual")
        if self.layer in ("proj", "fc2"):
            planner.gated(self.layer, "layer", "x", depth, Modulation("ada", width), 0)
        else:
            depth //= 2 if self.layer == "head" else 1
            planner.linear(self.layer, "layer", "x", "out", (depth, width))
        plan = planner.plan()
        (step,) = plan.steps
        scratch = torch.empty(max(plan.nbytes, 1), dtype=torch.uint8, device="cuda")
        arrivals = torch.zeros(max(plan.num_arrivals, 1), dtype=torch.int32, device="cuda")
        tensors = {
            "x": self.x_Rk, "ada": self.ada_1n, "residual": self.residual_Rn, ARRIVALS: arrivals,
            "layer.bias": self.bias, "out": out_Rn, "stream": out_Rn,
        }  # fmt: skip

        def call() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            places = {place: scratch.data_ptr() + at for place, at in plan.offsets.items()}
            places |= {place: tensor.data_ptr() for place, tensor in tensors.items()}
            for weights in self.weights:
                places["layer.weight"] = weights.data_ptr()
                pointers = {parameter: places[at] for parameter, at in step.pointers.items()}
                kernels.launch(step.kernel, step.grid, stream, {**pointers, **step.scalars})

        return call

    def cublas(self, out_Rn: Tensor) -> Callable[[], None]:
        k = self.x_Rk.shape[1] // (2 if self.layer == "head" else 1)
        x_Rk = self.x_Rk[:, :k].to(self.bias.dtype).contiguous()
        weights = [w[:k].to(self.bias.dtype) for w in self.weights]

        def call() -> None:
            for w in weights:
                torch.addmm(self.bias, x_Rk, w, out=out_Rn)

        return call


def print_times(problem: Problem, kernels: KernelLibrary, names: list[str]) -> None:
    out_Rn = torch.empty_like(problem.residual_Rn, dtype=problem.bias.dtype)
    count, expected = len(problem.weights), None
    base_us = time_graph(problem.cublas(out_Rn)).median_ms * 1e3 / count
    print(f"{problem.layer} {len(problem.x_Rk)} rows: cuBLAS {base_us:.1f} us")
    for name in names:
        call = problem.ours(kernels, name, out_Rn.fill_(torch.nan))
        call()
        expected = out_Rn.float() if expected is None else expected
        error = float((out_Rn.float() - expected).norm() / expected.norm())
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from {names[0]} by {error:.3g}")
        us = time_graph(call).median_ms * 1e3 / count
        print(f"  {us:8.1f} us {problem.flops / us * 1e-6:6.0f} TFLOP/s  {name}")


def main() -> None:
    args = parse_args()
    if unknown := set(args.layers.split(",")) - set(LAYERS):
        raise ValueError(f"--layers: no layers {sorted(unknown)}, there are {', '.join(LAYERS)}")
    layers = [layer for layer in LAYERS if layer in args.layers.split(",")]
    torch.backends.cuda.matmul.allow_tf32 = True
    device = CudaDevice()
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    kernels = KernelLibrary(open_library("trt").path, "transformer", device)
    for rows in map(int, args.rows.split(",")):
        chooser = LayerPlanner(kernels.table, width=args.width, rows=rows, length=rows, stream="x")
        for layer in layers:
            names = [chooser.select(layer, rows)[0]]
            if args.all:
                names = [n for n, entry in kernels.table.items() if layer in entry["uses"]]
            print_times(Problem.random(layer, rows, args.width, args.vocab), kernels, names)


if __name__ == "__main__":
    run(main, DeployError, PluginError, RuntimeError)
