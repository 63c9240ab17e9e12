"""Arithmetic and memory traffic of a generation, counted from the shapes in a bundle's manifest.

Counted are the matrix products and convolutions: two operations per multiply-add, and of bytes what
each reads and writes, its weights included. All else (norms, softmax, interpolation, sampling) is
left out of both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from runtime import sampler
from runtime.bundle import STORED_AS, Manifest, WeightSpec
from runtime.config import SamplingConfig
from runtime.schedule import masked_counts

BLOCK_LINEARS = ("qkv", "proj", "fc1", "fc2")
TRUNK, HEAD, COND, QUANTIZER, DECODE = "trunk", "head", "cond", "quantizer", "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Floating-point operations, and bytes read and written."""

    flops: int = 0
    nbytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(flops=self.flops + other.flops, nbytes=self.nbytes + other.nbytes)

    def __mul__(self, count: int) -> Work:
        return Work(flops=self.flops * count, nbytes=self.nbytes * count)


def total(works: Iterable[Work]) -> Work:
    return sum(works, Work())


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a graph; a transformer pass has twice as many rows as images where guided.

    `tokens` says how many an image has, where that does not follow from the graph's name.
    """

    graph: str
    is_guided: bool = False
    tokens: int = 0


def planned_steps(manifest: Manifest, sampling: SamplingConfig) -> list[Step]:
    """The steps of one generation, in order."""
    schedule, floor = sampling.checked(manifest.hmar), sampling.skip_guidance_below
    masked = sampler.masked_guidance(sampling.cfg) >= floor
    steps = [Step(manifest.graph("cond"), True)]
    for k, pn in enumerate(manifest.hmar.patch_nums):
        t = sampler.guidance(sampling.cfg, k, len(manifest.hmar.patch_nums))
        steps.append(Step(manifest.graph("ns", k), t >= floor))
        for _ in masked_counts(schedule[k] if schedule else (), pn * pn):
            steps.append(Step(manifest.graph("mask_input", k)))
            steps.append(Step(manifest.graph("mask", k), masked))
        steps.append(Step(manifest.graph("quant", k)))
    return [*steps, Step(manifest.graph("decode"))]


def step_work(manifest: Manifest, step: Step, batch: int) -> dict[str, Work]:
    """Work of one step for so many images, by part of the model."""
    rows = batch * (1 + step.is_guided)
    spec = manifest.graphs[step.graph]
    pn = 1 if spec.scale_idx is None else manifest.hmar.patch_nums[spec.scale_idx]
    if spec.kind in ("ns", "mask"):
        return _pass(manifest, spec.kind, rows, pn * pn)
    if spec.kind == "cond":
        return {COND: linears(manifest, r".+\.ada|shared_ada", rows)}
    if spec.kind in ("quant", "mask_input"):
        phi, side = manifest.tensors["phi.0.weight"], manifest.hmar.patch_nums[-1]
        return {QUANTIZER: _convolution(phi, batch, side)}
    if spec.kind == "decode":
        return {DECODE: decoding(manifest, batch, manifest.hmar.patch_nums[-1])}
    raise ValueError(f"graph {step.graph} is no step of a generation")


def _pass(manifest: Manifest, branch: str, rows: int, length: int) -> dict[str, Work]:
    model = manifest.hmar
    blocks = linears(
        manifest, rf"(base|{branch})_blocks\.\d+\.({'|'.join(BLOCK_LINEARS)})", rows * length
    )
    weight = manifest.tensors["word_embed.weight"]
    trunk = blocks + attention(weight, rows, length, model.embed_dim, model.depth)
    head = linears(manifest, rf"{branch}_head", rows * length)
    return {TRUNK: trunk, HEAD: head}


def attention(like: WeightSpec, rows: int, length: int, width: int, depth: int) -> Work:
    """Attention of so many blocks over `length` tokens, in the dtype of a weight."""
    return Work(
        flops=4 * rows * length**2 * width * depth,
        nbytes=4 * rows * length * width * depth * _itemsize(like),
    )


def linears(manifest: Manifest, pattern: str, rows: int) -> Work:
    """Products of `rows` vectors with every matrix whose name matches."""
    regex = re.compile(rf"({pattern})\.weight")
    return total(
        Work(flops=2 * rows * math.prod(w.shape), nbytes=_traffic(w, rows * sum(w.shape)))
        for name, w in manifest.tensors.items()
        if regex.fullmatch(name)
    )


def decoding(manifest: Manifest, batch: int, side: int) -> Work:
    """Convolutions of the decoder, and its attention over the coarsest map, of this side."""
    levels = round(math.log2(manifest.model.image_side_px / side))
    work = Work()
    for name, weight in manifest.tensors.items():
        if len(weight.shape) != 4 or not name.startswith(("decoder.", "post_quant_conv.")):
            continue
        level = re.match(r"decoder\.up\.(\d+)", name)
        doublings = (
            levels - int(level[1]) if level else levels * name.startswith("decoder.conv_out")
        )
        upsamples = ".upsample." in name
        work += _convolution(weight, batch, side << (doublings + upsamples), side << doublings)
        # with queries, keys and values in one projection or in three
        if re.search(r"\.(qkv|q)\.", name):
            tokens, channels = side * side, weight.shape[1]
            flops = 4 * batch * tokens**2 * channels
            nbytes = 4 * batch * tokens * channels * _itemsize(weight)
            work += Work(flops=flops, nbytes=nbytes)
    return work


def _convolution(weight: WeightSpec, batch: int, side: int, side_in: int | None = None) -> Work:
    """A convolution with maps of `side` as its result."""
    out_channels, in_channels = weight.shape[:2]
    pixels, pixels_in = side**2, (side_in or side) ** 2
    return Work(
        flops=2 * batch * pixels * math.prod(weight.shape),
        nbytes=_traffic(weight, batch * (in_channels * pixels_in + out_channels * pixels)),
    )


def _traffic(weight: WeightSpec, numbers: int) -> int:
    """Bytes of a weight, and of so many numbers of its type."""
    return (math.prod(weight.shape) + numbers) * _itemsize(weight)


def _itemsize(weight: WeightSpec) -> int:
    return np.dtype(STORED_AS[weight.dtype]).itemsize
