"""Which kernels run a pass of Hi-MAR, in order, and where in memory: a function of sizes.

The structure is that of `hmar.himar.HiMAR`, as exported: the graphs `cond`, `pivot` and `dense`.
The kernels are described in `plugins_trt/transformer/himar.py` and `kernel.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.bundle import Kind, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable, LaunchPlan
from runtime.layer_plan import HALF, LayerPlanner, Modulation

HIMAR_PASSES: tuple[Kind, ...] = ("cond", "pivot", "dense")
HEADS = {"himar-base-256": 12, "himar-large-256": 16}
"""Models with heads of 64."""
EPS = 1e-6  # of every layer norm
PHASES = ("pivot", "dense")
LINEARS = ("qkv", "proj", "fc1", "fc2")
FOLDED = ("norm1.weight", "norm1.bias", "gate1", "norm2.weight", "norm2.bias", "gate2")
"""Tensors of a block for one phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARSizes:
    """Sizes of the transformer.

    Attributes:
        width: D.
        heads: of the attention.
        hidden: width of the MLP.
        depths: blocks of the encoder and of the decoder.
        buffer: rows of every sequence before the tokens.
        pivots, dense: positions of both grids.
        head_widths: of the conditions that the denoisers take, by phase.
    """

    width: int
    heads: int
    hidden: int
    depths: dict[str, int]
    buffer: int
    pivots: int
    dense: int
    head_widths: dict[str, int]

    @property
    def length(self) -> int:
        """Rows of an image in the decoder."""
        return self.buffer + self.pivots + self.dense


def read_sizes(manifest: Manifest) -> HiMARSizes:
    """Sizes of a bundle's transformer.

    Raises:
        BackendUnavailableError: it is not in float16, or the kernels do not compute what it needs.
    """
    model, tensors = manifest.himar, manifest.tensors
    if manifest.precision != "fp16":
        raise BackendUnavailableError(
            "the transformer's kernels compute in float16, the bundle is in "
            f"{manifest.precision}; export it with --precision fp16"
        )
    if model.preset not in HEADS:
        raise BackendUnavailableError(
            f"the transformer's kernels are for {' and '.join(HEADS)}, whose heads are of 64 "
            f"values; this model is {model.preset or 'of other sizes'}"
        )
    return HiMARSizes(
        width=model.embed_dim,
        heads=HEADS[model.preset],
        hidden=tensors["encoder_blocks.0.fc1.bias"].shape[0],
        depths={"encoder": model.encoder_depth, "decoder": model.decoder_depth},
        buffer=tensors["pivot.encoder_buffer"].shape[0],
        pivots=model.num_pivots,
        dense=model.num_dense,
        head_widths={
            "pivot": tensors["mlp.cond.bias"].shape[0],
            "dense": tensors["dit.cond.bias"].shape[0],
        },
    )


def himar_weights(sizes: HiMARSizes, read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """What the kernels read: tensors of the bundle."""
    linears = ["cond_proj", "cond_z_proj", "z_proj", "decoder_embed", "mlp.cond", "dit.cond"]
    norms = ["z_proj_ln", "encoder_norm", "decoder_norm"]
    tables = ["encoder_buffer", "encoder_pivots", "decoder_buffer", "decoder_tokens"]
    tables += ["decoder_masked", "z"]
    names = ["cond_rows", "dense.encoder_dense"]
    names += [f"{phase}.{table}" for phase in PHASES for table in tables]
    for side, depth in sizes.depths.items():
        blocks = [f"{side}_blocks.{i}" for i in range(depth)]
        linears += [f"{block}.{linear}" for block in blocks for linear in LINEARS]
        names += [f"{b}.{phase}.{part}" for b in blocks for phase in PHASES for part in FOLDED]
    names += [f"{name}.{part}" for name in (*linears, *norms) for part in ("weight", "bias")]
    return {name: read(name) for name in names}


def plan_graph(
    sizes: HiMARSizes, kind: Kind, rows: int, known: int, predicted: int, kernels: KernelTable
) -> LaunchPlan:
    """The launches of a graph.

    Args:
        rows: N, sequences of the batch, guided ones counted twice.
        known: tokens of the phase's grid that are known.
        predicted: pivots that the step predicts; 0 in the dense phase.

    Raises:
        BackendUnavailableError: a kernel is missing.
    """
    plan = _Planner(sizes, rows, kernels)
    if kind == "cond":
        plan.look_up()
    elif kind == "pivot":
        plan.encode("pivot", known)
        plan.decode("pivot")
        plan.take("pivot", predicted)
    else:
        plan.encode("dense", known)
        plan.decode("dense")
        plan.take("dense", sizes.dense)
    return plan.plan()


class _Planner(LayerPlanner):
    """Rows are those of all sequences: of the encoder first, then of the decoder."""

    def __init__(self, sizes: HiMARSizes, images: int, kernels: KernelTable) -> None:
        super().__init__(kernels, width=sizes.width, rows=0, length=0, stream="stream")
        self._sizes, self._images = sizes, images

    def look_up(self) -> None:
        """Class embeddings."""
        kernel, _ = self.select("himar_class", 0)
        places = {"label": "label", "rows": "cond_rows", "out": "cond"}
        self.add(kernel, (self._images,), places, width=self.width)

    def encode(self, phase: str, known: int) -> None:
        """Embeds what is known, runs the encoder; the decoder's embedding goes to `embedded`."""
        of, images = self._sizes, self._images
        pivots = of.pivots if phase == "dense" else 0
        if pivots:
            shape, rows = (self.width, self.width), images * pivots
            nbytes = rows * self.width * HALF
            self.length = pivots
            out = self.scratch.add("pivots_in", nbytes)
            self.linear("qkv", "cond_z_proj", "small_z", out, shape, rows=rows)
        self._resize(of.buffer + pivots + known)
        tokens, linear, table = (
            ("dense", "z_proj", "dense.encoder_dense")
            if phase == "dense"
            else ("pivots", "cond_proj", "pivot.encoder_pivots")
        )
        places = {"cond": "cond", "buffer": f"{phase}.encoder_buffer", "out": self.stream}
        places |= {"gain": "z_proj_ln.weight", "offset": "z_proj_ln.bias"}
        if pivots:
            places |= {"pivots": "pivots_in", "pivot_table": "dense.encoder_pivots"}
        if known:
            places |= {"tokens": tokens, "known": "known", "table": table}
            places |= {"weights": f"{linear}.weight", "bias": f"{linear}.bias"}
        kernel, _ = self.select("himar_known", self.rows)
        sizes = {"length": self.length, "buffer_size": of.buffer, "num_pivots": pivots}
        sizes |= {"num_tokens": of.dense if phase == "dense" else of.pivots, "width": self.width}
        self.add(kernel, (self.rows,), places, **sizes, eps=EPS)
        self._blocks("encoder", phase)
        self.layer_norm("encoder_norm", EPS)
        shape = (self.width, self.width)
        out = self.scratch.add("embedded", self.rows * self.width * HALF)
        self.linear("qkv", "decoder_embed", "rows", out, shape)

    def decode(self, phase: str) -> None:
        """Fills `embedded` up to all positions, and runs the decoder's blocks."""
        known_length = self.length
        self._resize(self._sizes.length)
        kernel, _ = self.select("himar_fill", self.rows)
        tables = {"buffer": "buffer", "placed": "tokens", "masked": "masked"}
        places = {parameter: f"{phase}.decoder_{name}" for parameter, name in tables.items()}
        places |= {"x": "embedded", "source": "source", "out": self.stream}
        sizes = {"length": self.length, "known_length": known_length}
        sizes |= {"buffer_size": self._sizes.buffer, "width": self.width}
        self.add(kernel, (self.rows,), places, **sizes)
        self._blocks("decoder", phase)

    def take(self, phase: str, count: int) -> None:
        """The pass's outputs, of some pivots or of all dense tokens."""
        of, is_pivot = self._sizes, phase == "pivot"
        rows = self._images * count
        z = "z" if is_pivot else self.scratch.add("z_dense", rows * self.width * HALF)
        kernel, _ = self.select(f"himar_take_{'some' if is_pivot else 'all'}", rows)
        places = {"x": self.stream, "table": f"{phase}.z", "out": z}
        places |= {"gain": "decoder_norm.weight", "offset": "decoder_norm.bias"}
        if is_pivot:
            places["predicted"] = "predicted"
        first = of.buffer + (0 if is_pivot else of.pivots)
        sizes = {"length": self.length, "taken": count, "first": first, "width": self.width}
        self.add(kernel, (rows,), places, **sizes, eps=EPS)
        shape = (self.width, of.head_widths[phase])
        self.linear("qkv", "mlp.cond" if is_pivot else "dit.cond", z, "head_cond", shape, rows=rows)

    def _resize(self, length: int) -> None:
        self.length, self.rows = length, self._images * length
        self.scratch.add(self.stream, self.rows * self.width * HALF)

    def _blocks(self, side: str, phase: str) -> None:
        C, hidden = self.width, self._sizes.hidden
        for i in range(self._sizes.depths[side]):
            name = f"{side}_blocks.{i}"
            own = f"{name}.{phase}"
            self.layer_norm(f"{own}.norm1", EPS)
            self.linear("qkv", f"{name}.qkv", "rows", self.wide(3 * C), (C, 3 * C))
            self.attend(self._sizes.heads, self._images, self.length)
            self.gated("proj", f"{name}.proj", "rows", C, Modulation(f"{own}.gate1", 0), 0)
            self.layer_norm(f"{own}.norm2", EPS)
            self.linear("gelu_erf", f"{name}.fc1", "rows", self.wide(hidden), (C, hidden))
            self.gated("fc2", f"{name}.fc2", "wide", hidden, Modulation(f"{own}.gate2", 0), 0)
