"""Which kernels run Hi-MAR's denoisers, in order: a function of sizes.

The structure is that of `hmar.diffusion_head`; the kernels are described in
`plugins_trt/transformer/denoiser.py` and `kernel.py`. All modulation vectors of a call come from
one product, whose weights are those of the layers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.bundle import Kind, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable, LaunchPlan, blocks
from runtime.layer_plan import HALF, LayerPlanner, Modulation

DENOISER_KINDS: tuple[Kind, ...] = (
    "denoise_pivot", "denoise_pivot_unguided", "denoise_pivot_modulated", "modulate_pivot",
    "denoise_dense", "denoise_dense_unguided",
)  # fmt: skip
HEAD_DIM = 64  # of all published sizes
EPS = 1e-6  # of every layer norm
VECTORS = {"mlp": 3, "dit": 6}
"""Modulation vectors of a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserSizes:
    """Sizes of a denoiser.

    Attributes:
        name: "mlp" or "dit".
        width, depth: of its blocks.
        hidden: width of their layers in the middle.
    """

    name: Literal["mlp", "dit"]
    width: int
    depth: int
    hidden: int

    @property
    def num_vectors(self) -> int:
        """Modulation vectors of all blocks, and the two of the last layer."""
        return VECTORS[self.name] * self.depth + 2

    def place(self, block: int, vector: int) -> int:
        """Where a vector of a block is; the last layer counts as the block behind the last."""
        return (VECTORS[self.name] * block + vector) * self.width


def read_sizes(manifest: Manifest, kind: Kind) -> DenoiserSizes:
    """Sizes of the denoiser of a kind of graph.

    Raises:
        BackendUnavailableError: it is not in float16, or the kernels do not compute what it needs.
    """
    if manifest.precision != "fp16":
        raise BackendUnavailableError(
            f"the denoisers' kernels compute in float16, the bundle is in {manifest.precision}; "
            "export it with --precision fp16"
        )
    model, tensors = manifest.himar, manifest.tensors
    name: Literal["mlp", "dit"] = "mlp" if "pivot" in kind else "dit"
    if model.preset is None:  # the manifest does not say how wide heads of others are
        raise BackendUnavailableError("the denoisers' kernels are for models of published sizes")
    (width,) = tensors[f"{name}.blocks.0.fc2.bias"].shape
    (hidden,) = tensors[f"{name}.blocks.0.fc1.bias"].shape
    depth = sum(t.startswith(f"{name}.blocks.") and t.endswith(".fc1.bias") for t in tensors)
    return DenoiserSizes(name=name, width=width, depth=depth, hidden=hidden)


def denoiser_weights(
    sizes: DenoiserSizes, read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """What the kernels read: tensors of the bundle, and all modulations side by side."""
    name = sizes.name
    layers = [f"{name}.blocks.{i}" for i in range(sizes.depth)]
    own = ("norm", "fc1", "fc2") if name == "mlp" else ("qkv", "proj", "fc1", "fc2")
    names = [f"{name}.input", f"{name}.final", *(f"{b}.{part}" for b in layers for part in own)]
    arrays = {f"{n}.{part}": read(f"{n}.{part}") for n in names for part in ("weight", "bias")}
    arrays[f"{name}.final.weight"] = arrays[f"{name}.final.weight"].T
    arrays[f"{name}.time"] = read(f"{name}.time")
    if name == "dit":
        arrays["dit.pos"] = read("dit.pos")
    for part in ("weight", "bias"):
        parts = [read(f"{layer}.ada.{part}") for layer in (*layers, f"{name}.final")]
        arrays[f"{name}.ada.{part}"] = np.concatenate(parts, axis=-1)
    return {tensor: np.ascontiguousarray(array) for tensor, array in arrays.items()}


def plan_denoiser(
    sizes: DenoiserSizes, kind: Kind, dims: Mapping[str, int], length: int, kernels: KernelTable
) -> LaunchPlan:
    """The launches of a graph of a denoiser.

    Args:
        dims: sizes of the graph's symbolic dimensions.
        length: tokens of an image.

    Raises:
        BackendUnavailableError: a kernel is missing.
    """
    halves = 1 if kind.endswith("_unguided") else 2
    images = dims["N"] if kind == "modulate_pivot" else halves * dims["B"]
    plan = _Planner(sizes, images, length, kernels)
    if kind == "modulate_pivot":
        plan.modulate("modulation", dims["T"])
    else:
        if kind != "denoise_pivot_modulated":
            plan.modulate(plan.scratch.add("modulation", plan.ada_nbytes), 1)
        plan.denoise(halves)
    return plan.plan()


class _Planner(LayerPlanner):
    """Rows are the tokens of all images of both halves, each with its own modulation."""

    def __init__(
        self, sizes: DenoiserSizes, images: int, length: int, kernels: KernelTable
    ) -> None:
        rows, width = images * length, sizes.width
        super().__init__(kernels, width=width, rows=rows, length=1, stream="embedded")
        self._sizes, self._images, self._tokens = sizes, images, length
        self._ada = Modulation("modulation", sizes.num_vectors * width)

    @property
    def ada_nbytes(self) -> int:
        """Of the modulation vectors of all rows."""
        return self.rows * self._ada.stride * HALF

    def modulate(self, out: str, timesteps: int) -> None:
        """The modulation vectors of all rows for each time step."""
        name, count = self._sizes.name, self.rows * self.width
        act = self.scratch.add("act", timesteps * count * HALF)
        kernel, entry = self.select("activate", self.rows)
        grid = (blocks(count, entry["constants"]["BLOCK"]), timesteps)
        places = {"cond": "head_cond", "times": f"{name}.time", "timestep": "timestep", "out": act}
        self.add(kernel, grid, places, count=count, width=self.width)
        shape = (self.width, self._ada.stride)
        self.linear("ada", f"{name}.ada", act, out, shape, rows=timesteps * self.rows)

    def denoise(self, halves: int) -> None:
        """The denoiser, given the modulation vectors."""
        self._embed(halves)
        for i in range(self._sizes.depth):
            (self._perceptron if self._sizes.name == "mlp" else self._transformer)(i)
        self._noise(halves)

    def _embed(self, halves: int) -> None:
        name = self._sizes.name
        self.scratch.add("embedded", self.rows * self.width * HALF)
        kernel, entry = self.select(f"{name}_embed", self.rows)
        of = entry["constants"]
        grid = (blocks(self.width, of["BLOCK_N"]), blocks(self.rows, of["BLOCK_M"]))
        places = {"x": "x", "weights": f"{name}.input.weight", "bias": f"{name}.input.bias"}
        places |= {"out": "embedded"} | ({"pos": "dit.pos"} if name == "dit" else {})
        sizes = {"rows": self.rows, "positions": self.rows // halves, "length": self._tokens}
        self.add(kernel, grid, places, **sizes, width=self.width)

    def _perceptron(self, i: int) -> None:
        W, at, own = self.width, self._sizes.place, f"mlp.blocks.{i}"
        shift, scale, gate = (at(i, vector) for vector in range(3))
        self.normalize(self._ada, scale, shift, EPS, "affine_norm", f"{own}.norm")
        self.linear("silu", f"{own}.fc1", "rows", self.wide(W), (W, W))
        self.gated("proj", f"{own}.fc2", "wide", W, self._ada, gate)

    def _transformer(self, i: int) -> None:
        W, hidden, own = self.width, self._sizes.hidden, f"dit.blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self._sizes.place(i, vector) for vector in range(6)
        )
        self.normalize(self._ada, scale1, shift1, EPS)
        self.linear("qkv", f"{own}.qkv", "rows", self.wide(3 * W), (W, 3 * W))
        self.attend(W // HEAD_DIM, self._images, self._tokens)
        self.gated("proj", f"{own}.proj", "rows", W, self._ada, gate1)
        self.normalize(self._ada, scale2, shift2, EPS)
        self.linear("fc1", f"{own}.fc1", "rows", self.wide(hidden), (W, hidden))
        self.gated("fc2", f"{own}.fc2", "wide", hidden, self._ada, gate2)

    def _noise(self, halves: int) -> None:
        name, depth = self._sizes.name, self._sizes.depth
        positions = self.rows // halves
        kernel, _ = self.select(f"{name}_noise{'_guided' if halves == 2 else ''}", positions)
        places = {
            "x": self.stream,
            "ada": self._ada.place,
            "weights": f"{name}.final.weight",
            "bias": f"{name}.final.bias",
            "noise": "noise",
            **({"guidance": "scale"} if halves == 2 else {}),
            **({"variance": "variance"} if name == "mlp" else {}),
        }
        self.add(
            kernel,
            (positions,),
            places,
            positions=positions,
            width=self.width,
            ada_stride=self._ada.stride,
            scale_at=self._sizes.place(depth, 1),
            shift_at=self._sizes.place(depth, 0),
            eps=EPS,
        )
