"""Launches of linear layers, norms and attention: what plans of transformers are put together from.

The kernels are described in `plugins_trt/transformer/kernel.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import BackendUnavailableError
from runtime.launches import ARRIVALS, KernelTable, LaunchPlan, Scratch, Step, blocks

HALF, FLOAT = 2, 4  # bytes
INT32 = 1 << 31  # offsets are below it
MAX_PREFETCH = 8 << 20  # bytes of the next layer's weights


@dataclass(frozen=True, slots=True)
class Modulation:
    """Modulation vectors: where they are, and how many values from one to the next; 0 = all share
    one."""

    place: str
    stride: int


class LayerPlanner:
    """Collects launches, and the scratch memory that they take.

    Places: `stream` and `other_stream` are the residual stream in turns, `rows` what the next
    linear layer reads, `wide` the results of layers that are wider than the stream.

    Args:
        width: of the stream, C.
        rows: of the stream.
        length: rows that share modulation vectors, one after the other.
        stream: the place that the first residual layer reads.
    """

    def __init__(
        self, kernels: KernelTable, *, width: int, rows: int, length: int, stream: str
    ) -> None:
        self.width, self.rows, self.length, self.stream = width, rows, length, stream
        self.scratch = Scratch()
        self._kernels, self._num_arrivals = kernels, 0
        self._steps: list[Step] = []

    def plan(self) -> LaunchPlan:
        """All launches so far."""
        offsets, nbytes = self.scratch.lay_out()
        return LaunchPlan(
            steps=tuple(self._with_prefetches()),
            offsets=offsets,
            nbytes=nbytes,
            num_arrivals=self._num_arrivals,
        )

    def _with_prefetches(self) -> list[Step]:
        """The launches, of which each that can brings the weights of the next layer into the cache,
        unless these are too many; of a head, the high halves."""
        steps: list[Step] = []
        weights, nbytes = "", 0  # of the layer after
        for step in reversed(self._steps):
            fits = 0 < nbytes <= MAX_PREFETCH
            if fits and self._kernels[step.kernel]["function"] == "narrow":
                pointers = {**step.pointers, "next": weights}
                scalars = {**step.scalars, "next_nbytes": nbytes}
                steps.append(Step(step.kernel, step.grid, pointers, scalars))
            else:
                steps.append(step)
            if "depth" in step.scalars:
                weights = step.pointers["weights"]
                nbytes = int(step.scalars["depth"] * step.scalars["width"]) * HALF
        return steps[::-1]

    def wide(self, width: int) -> str:
        """A place for rows of so many float16 values."""
        return self.scratch.add("wide", self.rows * width * HALF)

    def normalize(
        self,
        ada: Modulation,
        scale_at: int,
        shift_at: int,
        eps: float,
        part: str = "norm",
        affine: str = "",
    ) -> None:
        """The modulated norm of the stream, to `rows`.

        Args:
            part: "norm", "head_norm" for what rounding lacks, too, or "affine_norm".
            affine: tensors of the norm's own weight and bias, without `.weight` and `.bias`.
        """
        C, halves = self.width, 2 if part == "head_norm" else 1
        self.scratch.add("rows", self.rows * C * halves * HALF)
        kernel, _ = self.select(part, self.rows)
        pointers = {"x": self.stream, "ada": ada.place, "out": "rows"}
        if affine:
            pointers |= {"gain": f"{affine}.weight", "offset": f"{affine}.bias"}
        places = {"scale_at": scale_at, "shift_at": shift_at}
        sizes = {"length": self.length, "width": C, "ada_stride": ada.stride}
        self.add(kernel, (self.rows,), pointers, **sizes, **places, eps=eps)

    def layer_norm(self, own: str, eps: float) -> None:
        """The norm of the stream, to `rows`; `own` are its tensors, without `.weight`, `.bias`."""
        self.scratch.add("rows", self.rows * self.width * HALF)
        kernel, _ = self.select("layer_norm", self.rows)
        pointers = {"x": self.stream, "gain": f"{own}.weight", "offset": f"{own}.bias"}
        sizes = {"length": self.length, "width": self.width, "ada_stride": 0}
        places = {"scale_at": 0, "shift_at": 0}
        self.add(kernel, (self.rows,), {**pointers, "out": "rows"}, **sizes, **places, eps=eps)

    def attend(self, heads: int, images: int, length: int, scale_mul: str = "") -> None:
        """Attention of `wide` within each image, to `rows`; of unit vectors with `scale_mul`."""
        part = "attention" if scale_mul else "plain_attention"
        sizes = {"length": length, "width": self.width}

        def grid_of(name: str) -> tuple[int, int, int]:
            return blocks(length, self._kernels[name]["constants"]["BLOCK_Q"]), heads, images

        kernel = self._find(f"wide_{part}", length)
        if kernel and math.prod(grid_of(kernel)) >= self._kernels[kernel]["from_programs"]:
            sizes["images"] = images
        else:
            kernel, _ = self.select(part, length)
        self.scratch.add("rows", self.rows * self.width * HALF)
        pointers = {"qkv": "wide", "out": "rows"} | ({"scale_mul": scale_mul} if scale_mul else {})
        self.add(kernel, grid_of(kernel), pointers, **sizes)

    def gated(
        self, layer: str, own: str, x: str, depth: int, ada: Modulation, gate_at: int
    ) -> None:
        """Adds the gated result of a linear layer to the stream.

        The sum goes to another place than the stream comes from: on an H100, a kernel that writes
        rows where it reads others of the same tile takes up to half as long again.
        """
        residual = self.stream
        place = "stream" if residual != "stream" else "other_stream"
        self.stream = self.scratch.add(place, self.rows * self.width * HALF)
        if (self.rows // self.length) * ada.stride >= INT32:
            raise BackendUnavailableError(
                f"{own}: modulation vectors of {self.rows} rows are too far apart for the kernels; "
                "use smaller batches"
            )
        pointers = {"ada": ada.place, "residual": residual}
        scalars = {"ada_stride": ada.stride, "gate_at": gate_at}
        self.linear(layer, own, x, self.stream, (depth, self.width), pointers, scalars)

    def linear(
        self,
        layer: str,
        own: str,
        x: str,
        out: str,
        shape: tuple[int, int],
        pointers: Mapping[str, str] | None = None,
        scalars: Mapping[str, int] | None = None,
        rows: int | None = None,
    ) -> None:
        """A linear layer.

        Args:
            layer: the part that the kernel is for.
            own: tensors, without `.weight` and `.bias`.
            shape: depth and width of the weights.
            rows: those of the stream, if None.
        """
        (depth, width), rows = shape, rows or self.rows
        kernel, entry = self.select(layer, rows)
        of = entry["constants"]
        if depth % of["BLOCK_K"]:
            raise BackendUnavailableError(
                f"kernel {kernel} reads {of['BLOCK_K']} values at once, {own} has {depth}"
            )
        places = {"x": x, "weights": f"{own}.weight", "bias": f"{own}.bias", "out": out}
        places |= pointers or {}
        sizes = {"rows": rows, "length": self.length, "depth": depth, "width": width}
        sizes |= scalars or {}
        if entry["function"] == "wide":
            programs, cluster = entry["programs"], of["CLUSTER"]
            tiles = cluster * blocks(rows, cluster * of["BLOCK_M"]) * blocks(width, of["BLOCK_N"])
            if of["SPLITS"] > 1:
                nbytes = tiles * of["SPLITS"] * of["BLOCK_M"] * of["BLOCK_N"] * FLOAT
                places |= self._partials(nbytes, tiles * (1 + of["COOPERATES"]))
            self.add(kernel, (min(tiles * of["SPLITS"], programs),), places, **sizes)
            return
        down, across = blocks(rows, of["BLOCK_M"]), blocks(width, of["BLOCK_N"])
        if entry["function"] == "narrow":
            self.add(kernel, (of["SPLITS"] * across, down), places, **sizes)
            return
        tiles = down * across
        if of["SPLITS"] > 1:
            places |= self._partials(of["SPLITS"] * rows * width * FLOAT, tiles)
        self.add(kernel, (tiles, of["SPLITS"]), places, **sizes)

    def _partials(self, nbytes: int, arrivals: int) -> dict[str, str]:
        """Where programs that share tiles leave their sums, and count who is done."""
        self._num_arrivals = max(self._num_arrivals, arrivals)
        return {"partials": self.scratch.add("partials", nbytes), "arrivals": ARRIVALS}

    def add(
        self,
        kernel: str,
        grid: Sequence[int],
        pointers: dict[str, str],
        **scalars: int | float,
    ) -> None:
        """A launch."""
        self._steps.append(Step(kernel, tuple(grid), pointers, scalars))

    def select(self, part: str, size: int) -> tuple[str, Mapping[str, Any]]:
        """The kernel of a part for so many rows or tokens.

        Raises:
            BackendUnavailableError: there is none.
        """
        if (name := self._find(part, size)) is None:
            raise BackendUnavailableError(f"the library has no transformer kernel for {part}")
        return name, self._kernels[name]

    def _find(self, part: str, size: int) -> str | None:
        found: dict[tuple[int, int], str] = {}
        for name, entry in self._kernels.items():
            for width, start in entry["uses"].get(part, ()):
                if width <= self.width and start <= size:
                    found[width, start] = name
        return found[max(found)] if found else None
