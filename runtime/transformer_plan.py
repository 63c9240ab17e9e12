"""Which kernels run a transformer pass, in order, and where in memory: a function of sizes.

The structure is that of `hmar.hmar.HMAR`, from embedded tokens to logits: the graphs `ns_trunk` and
`mask_trunk`. Rows are the tokens of all images, image after image; the kernels are described in
`plugins_trt/transformer/kernel.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plugins_trt.transformer.weights import split
from runtime.bundle import Kind, Manifest
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable, LaunchPlan
from runtime.layer_plan import LayerPlanner, Modulation

PASSES: tuple[Kind, ...] = ("ns_trunk", "mask_trunk")
EPS = 1e-6  # of every layer norm
VECTORS = ("gamma1", "gamma2", "scale1", "scale2", "shift1", "shift2")
"""Modulation vectors of a block, in their order in memory."""


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
    C, V, hidden = sizes.width, sizes.vocab, sizes.hidden
    # the first block reads the pass's input
    plan = LayerPlanner(kernels, width=C, rows=images * length, length=length, stream="x")
    stack = [(group, i) for group in ("base", branch) for i in range(sizes.layers[group])]
    for group, i in stack:
        name = f"{group}_blocks.{i}"
        ada = Modulation(f"ada_{group}", sizes.layers[group] * 6 * C)
        at = {vector: (6 * i + place) * C for place, vector in enumerate(VECTORS)}
        plan.normalize(ada, at["scale1"], at["shift1"], EPS)
        plan.linear("qkv", f"{name}.qkv", "rows", plan.wide(3 * C), (C, 3 * C))
        plan.attend(sizes.heads, images, length, f"{name}.scale_mul")
        plan.gated("proj", f"{name}.proj", "rows", C, ada, at["gamma1"])
        plan.normalize(ada, at["scale2"], at["shift2"], EPS)
        plan.linear("fc1", f"{name}.fc1", "rows", plan.wide(hidden), (C, hidden))
        plan.gated("fc2", f"{name}.fc2", "wide", hidden, ada, at["gamma2"])
    plan.normalize(Modulation(f"head_{branch}", 2 * C), 0, C, EPS, part="head_norm")
    plan.linear("head", f"{branch}_head", "rows", "logits", (C, V))
    return plan.plan()
