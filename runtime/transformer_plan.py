"""Which kernels run a transformer pass, in order, and where in memory: a function of sizes.

The structure is that of `hmar.hmar.HMAR`, from embedded tokens to logits: the graphs `ns_trunk` and
`mask_trunk`. Rows are the tokens of all images, image after image; the kernels are described in
`plugins_trt/transformer/kernel.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins_trt.transformer.weights import split
from runtime.bundle import Kind, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import ARRIVALS, KernelTable, LaunchPlan, Scratch, Step, blocks

PASSES: tuple[Kind, ...] = ("ns_trunk", "mask_trunk")
EPS = 1e-6  # of every layer norm
VECTORS = ("gamma1", "gamma2", "scale1", "scale2", "shift1", "shift2")
"""Modulation vectors of a block, in their order in memory."""
HALF, FLOAT = 2, 4  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSizes:
    """Sizes of a transformer.

    Attributes:
        width: C.
        heads: of the attention.
        hidden: width of the MLP.
        vocab: V.
        layers: blocks of the base, and of each branch.
    """

    width: int
    heads: int
    hidden: int
    vocab: int
    layers: dict[str, int]


def read_sizes(manifest: Manifest) -> TransformerSizes:
    """Sizes of a bundle's transformer.

    Raises:
        BackendUnavailableError: it is not in float16, or the kernels do not compute what it needs.
    """
    model = manifest.hmar
    if manifest.precision != "fp16":
        raise BackendUnavailableError(
            "the transformer's kernels compute in float16, the bundle is in "
            f"{manifest.precision}; export it with --precision fp16"
        )
    if not model.attn_l2_norm:
        raise BackendUnavailableError(
            "the transformer's kernels normalise queries and keys, this model does not"
        )
    if model.embed_dim != 64 * model.num_heads or model.embed_dim % 128:
        raise BackendUnavailableError(
            "the transformer's kernels need heads of 64 and a width that is a multiple of 128, "
            f"this model has {model.num_heads} heads and a width of {model.embed_dim}"
        )
    branches = ("ns", "mask") if model.has_mask_branch else ("ns",)
    base = model.depth - model.branch_layers
    return TransformerSizes(
        width=model.embed_dim,
        heads=model.num_heads,
        hidden=manifest.tensors[f"{'base' if base else 'ns'}_blocks.0.fc1.bias"].shape[0],
        vocab=model.vocab_size,
        layers={"base": base, **dict.fromkeys(branches, model.branch_layers)},
    )


def transformer_weights(
    sizes: TransformerSizes, read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """What the kernels read: tensors of the bundle, and those of the heads by halves."""
    arrays: dict[str, np.ndarray] = {}
    for group, layers in sizes.layers.items():
        for i in range(layers):
            name = f"{group}_blocks.{i}"
            linears = ("qkv", "proj", "fc1", "fc2")
            parts = [f"{linear}.{part}" for linear in linears for part in ("weight", "bias")]
            arrays |= {f"{name}.{part}": read(f"{name}.{part}") for part in (*parts, "scale_mul")}
    for branch in sizes.layers:
        if branch != "base":
            arrays[f"{branch}_head.weight"] = split(read(f"{branch}_head.weight"))
            arrays[f"{branch}_head.bias"] = read(f"{branch}_head.bias")
    return arrays


def plan_pass(
    sizes: TransformerSizes, branch: str, images: int, length: int, kernels: KernelTable
) -> LaunchPlan:
    """The launches of a pass over `length` tokens of each image.

    Raises:
        BackendUnavailableError: a kernel is missing.
    """
    planner = _Planner(sizes, images, length, kernels)
    stack = [(group, i) for group in ("base", branch) for i in range(sizes.layers[group])]
    for group, i in stack:
        ada = _Modulation(f"ada_{group}", sizes.layers[group] * 6 * sizes.width, i, sizes.width)
        planner.block(f"{group}_blocks.{i}", ada)
    planner.head(branch)
    return planner.plan()


@dataclass(frozen=True, slots=True)
class _Modulation:
    """Modulation vectors of a block: an input, from one image to the next, the block, its width."""

    place: str
    stride: int
    layer: int
    width: int

    def at(self, vector: str) -> int:
        """Where a vector of the block is, from the first of the image."""
        return (6 * self.layer + VECTORS.index(vector)) * self.width


class _Planner:
    """Collects steps. Places: `stream` is the residual stream, `rows` holds what the next linear
    layer reads, `wide` the results of qkv and fc1."""

    def __init__(
        self, sizes: TransformerSizes, images: int, length: int, kernels: KernelTable
    ) -> None:
        self._sizes, self._images, self._length = sizes, images, length
        self._rows, self._kernels = images * length, kernels
        self._stream = "x"  # the first block reads the pass's input
        self._steps: list[Step] = []
        self._scratch, self._num_arrivals = Scratch(), 0

    def block(self, name: str, ada: _Modulation) -> None:
        C, hidden = self._sizes.width, self._sizes.hidden
        self._normalize(ada.place, ada.stride, ada.at("scale1"), ada.at("shift1"))
        self._linear("qkv", name, "rows", self._wide(3 * C), (C, 3 * C))
        self._attend(name)
        self._linear("proj", name, "rows", "stream", (C, C), ada, "gamma1")
        self._normalize(ada.place, ada.stride, ada.at("scale2"), ada.at("shift2"))
        self._linear("fc1", name, "rows", self._wide(hidden), (C, hidden))
        self._linear("fc2", name, "wide", "stream", (hidden, C), ada, "gamma2")

    def head(self, branch: str) -> None:
        """Logits from the residual stream."""
        C, V = self._sizes.width, self._sizes.vocab
        self._normalize(f"head_{branch}", 2 * C, 0, C, part="head_norm")
        self._linear("head", f"{branch}_head", "rows", "logits", (C, V))

    def plan(self) -> LaunchPlan:
        offsets, nbytes = self._scratch.lay_out()
        return LaunchPlan(
            steps=tuple(self._steps),
            offsets=offsets,
            nbytes=nbytes,
            num_arrivals=self._num_arrivals,
        )

    def _wide(self, width: int) -> str:
        return self._scratch.add("wide", self._rows * width * HALF)

    def _normalize(
        self, ada: str, stride: int, scale_at: int, shift_at: int, part: str = "norm"
    ) -> None:
        C, halves = self._sizes.width, 2 if part == "head_norm" else 1
        self._scratch.add("rows", self._rows * C * halves * HALF)
        kernel, _ = self._select(part, self._rows)
        pointers = {"x": self._stream, "ada": ada, "out": "rows"}
        self._add(
            kernel,
            (self._rows,),
            pointers,
            length=self._length,
            width=C,
            ada_stride=stride,
            scale_at=scale_at,
            shift_at=shift_at,
            eps=EPS,
        )

    def _attend(self, name: str) -> None:
        kernel, entry = self._select("attention", self._length)
        grid = (
            blocks(self._length, entry["constants"]["BLOCK_Q"]),
            self._sizes.heads,
            self._images,
        )
        pointers = {"qkv": "wide", "scale_mul": f"{name}.scale_mul", "out": "rows"}
        self._add(kernel, grid, pointers, length=self._length, width=self._sizes.width)

    def _linear(
        self,
        layer: str,
        name: str,
        x: str,
        out: str,
        shape: tuple[int, int],
        ada: _Modulation | None = None,
        gate: str = "",
    ) -> None:
        depth, width = shape
        kernel, entry = self._select(layer, self._rows)
        of, own = entry["constants"], name if layer == "head" else f"{name}.{layer}"
        tiles = blocks(self._rows, of["BLOCK_M"]) * blocks(width, of["BLOCK_N"])
        if depth % of["BLOCK_K"]:
            raise BackendUnavailableError(
                f"kernel {kernel} reads {of['BLOCK_K']} values at once, {own} has {depth}"
            )
        pointers = {"x": x, "weights": f"{own}.weight", "bias": f"{own}.bias", "out": out}
        scalars = {"rows": self._rows, "length": self._length, "depth": depth, "width": width}
        if ada is not None:
            pointers |= {"ada": ada.place, "residual": self._stream}
            scalars |= {"ada_stride": ada.stride, "gate_at": ada.at(gate)}
            self._stream = self._scratch.add("stream", self._rows * width * HALF)
        if entry["function"] == "wide":
            programs = entry["programs"]
            pointers["global_scratch"] = self._scratch.add(
                "descriptors", programs * entry["scratch_bytes"]
            )
            self._add(kernel, (min(tiles, programs),), pointers, **scalars)
            return
        if of["SPLITS"] > 1:
            nbytes = of["SPLITS"] * self._rows * width * FLOAT
            pointers |= {"partials": self._scratch.add("partials", nbytes), "arrivals": ARRIVALS}
            self._num_arrivals = max(self._num_arrivals, tiles)
        self._add(kernel, (tiles, of["SPLITS"]), pointers, **scalars)

    def _add(
        self,
        kernel: str,
        grid: Sequence[int],
        pointers: dict[str, str],
        **scalars: int | float,
    ) -> None:
        self._steps.append(Step(kernel, tuple(grid), pointers, scalars))

    def _select(self, part: str, size: int) -> tuple[str, Mapping[str, Any]]:
        """The kernel of a part of the pass for so many rows or tokens."""
        found: dict[tuple[int, int], str] = {}
        for name, entry in self._kernels.items():
            for width, start in entry["uses"].get(part, ()):
                if width <= self._sizes.width and start <= size:
                    found[width, start] = name
        if not found:
            raise BackendUnavailableError(f"the library has no transformer kernel for {part}")
        name = found[max(found)]
        return name, self._kernels[name]
