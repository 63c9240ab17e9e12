"""Which engines a bundle needs, and which profile of an engine fits a call: pure functions of ints.

An optimization profile is one set of sizes for the symbolic dimensions of a graph's inputs; all
profiles are static, since one wide profile runs slower than one profile per scale and batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from runtime.bundle import (
    STORED_AS,
    GraphSpec,
    HiMARSamplingDefaults,
    Kind,
    Manifest,
    TensorSpec,
)
from runtime.himar_profiles import STEPPED, step_lengths

Layout = Literal["profiles", "per-scale"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Guidance = Literal["default", "any"]
GUIDANCES: tuple[str, ...] = get_args(Guidance)
Dims = dict[str, int]
HALVED = "2B"
"""Rows of a graph that guides, which come in two halves."""
ROWS = ("N", "B", HALVED)
"""Symbolic dimensions of rows; all others are fixed by the scale or step."""

TRUNKS: tuple[Kind, ...] = ("embed_first", "embed_ns", "ns_trunk", "embed_mask", "mask_trunk")
STEPS: tuple[Kind, ...] = ("ns", "mask")
OPTIONAL: tuple[Kind, ...] = ("ns_prefix", "score")
MASKED: tuple[Kind, ...] = ("embed_mask", "mask_trunk", "mask")
ATTENTION_KINDS: tuple[Kind, ...] = ("ns_trunk", "mask_trunk", "ns", "mask", *OPTIONAL)
"""Kinds of graph that hold the attention op."""
STAGED: tuple[Kind, ...] = ("encode", "decode", "decode_pivot")
"""Kinds of graph that can be built in stages: the convolutional networks."""

MAX_BATCH = 4096
MODULATED_BATCH = 32
"""Images up to which the pivots' modulations are made for all diffusion steps at once: they save
reading weights, and take 25 MB an image of Hi-MAR-B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What to build engines for.

    Attributes:
        batches: numbers of images, the batch buckets; other batches are padded to the next one.
        layout: "profiles" builds the scale-generic trunks, one engine with a profile per scale and
            bucket, of Hi-MAR one per phase with a profile per step; "per-scale" builds one engine
            per step graph instead.
        guidance: "default" builds each pass with or without the unconditional half, as the default
            settings run it: next-scale passes with, masked passes and the first scale without; of
            Hi-MAR all with. "any" builds both, as traces and `skip_guidance_below=0` need them.
        extra: kinds to build in addition, of `OPTIONAL`.
        leave_out: kinds not to build, since they run elsewhere.
        stages: engines to cut a graph into, by kind, of `STAGED`; 1 = whole. A kind that is not
            named is built whole, and cut where TensorRT cannot run it so on this machine's GPU.
        workspace_bytes: limit on an engine's scratch memory; None = the GPU's memory.
    """

    batches: tuple[int, ...] = (1,)
    layout: Layout = "profiles"
    guidance: Guidance = "default"
    extra: tuple[Kind, ...] = ()
    leave_out: tuple[Kind, ...] = ()
    stages: Mapping[Kind, int] = field(default_factory=dict)
    workspace_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.batches or any(not 1 <= b <= MAX_BATCH for b in self.batches):
            raise ValueError(f"batches must be numbers of images >= 1, got {self.batches}")
        if list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"batches must ascend, each once, got {self.batches}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {self.layout!r}")
        if self.guidance not in GUIDANCES:
            raise ValueError(f"guidance must be one of {GUIDANCES}, got {self.guidance!r}")
        if unknown := set(self.extra) - set(OPTIONAL):
            raise ValueError(f"extra graphs are {OPTIONAL}, got {sorted(unknown)}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError(f"workspace_bytes must be positive, got {self.workspace_bytes}")
        if unknown := set(self.leave_out) - set(get_args(Kind)):
            raise ValueError(f"kinds to leave out are unknown: {sorted(unknown)}")
        if unknown := set(self.stages) - set(STAGED):
            raise ValueError(f"graphs in stages are {STAGED}, got {sorted(unknown)}")
        if any(count < 1 for count in self.stages.values()):
            raise ValueError(f"stages must be numbers of engines >= 1, got {dict(self.stages)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine: a graph, and the sizes that it is built for."""

    graph: str
    kind: Kind
    profiles: tuple[Dims, ...]


def plan_engines(manifest: Manifest, options: EngineOptions) -> list[EngineSpec]:
    """The engines of a bundle, in the order of its graphs."""
    if manifest.family == "himar":
        return _plan_himar(manifest, options)
    kinds = set(get_args(Kind)) - set(OPTIONAL) - set(STEPS if options.layout == "profiles" else ())
    if options.layout == "per-scale":
        kinds -= set(TRUNKS)
    kinds = (kinds | set(options.extra)) - set(options.leave_out)
    return [
        EngineSpec(
            graph=name,
            kind=spec.kind,
            profiles=plan_profiles(spec, manifest.hmar.patch_nums, options),
        )
        for name, spec in manifest.graphs.items()
        if spec.kind in kinds
    ]


def _plan_himar(manifest: Manifest, options: EngineOptions) -> list[EngineSpec]:
    """The same for Hi-MAR, at the bundle's own number of steps."""
    engines, per_step = [], options.layout == "per-scale"
    sampling = manifest.sampling
    assert isinstance(sampling, HiMARSamplingDefaults)
    for name, spec in manifest.graphs.items():
        is_unguided = spec.kind.endswith("_unguided") and options.guidance == "default"
        if is_unguided or spec.kind in options.leave_out:
            continue
        symbols = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
        profiles = tuple(
            {symbol: size for symbol, size in {**rows, **lengths}.items() if symbol in symbols}
            for lengths in step_lengths(spec, manifest.himar, sampling, per_step)
            for rows in _himar_rows(spec.kind, options)
        )
        if profiles:
            engines.append(EngineSpec(graph=name, kind=spec.kind, profiles=profiles))
    return engines


def _himar_rows(kind: Kind, options: EngineOptions) -> list[Dims]:
    both = [{"B": b, HALVED: 2 * b, "N": 2 * b} for b in options.batches]
    if kind == "modulate_pivot":
        return [rows for rows in both if rows["B"] <= MODULATED_BATCH]
    if options.guidance == "default" or kind not in ("cond", *STEPPED):
        return both
    rows = sorted({n for b in options.batches for n in (b, 2 * b)})
    return [{"N": n} for n in rows]


def plan_profiles(
    spec: GraphSpec, patch_nums: Sequence[int], options: EngineOptions
) -> tuple[Dims, ...]:
    """Profiles of one graph of HMAR: scales of its kind times numbers of rows."""
    symbols = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
    return tuple(
        {symbol: size for symbol, size in {**rows, **scale}.items() if symbol in symbols}
        for scale in _scales(spec.kind, patch_nums)
        for rows in _rows(spec, scale, symbols, options)
    )


def _scales(kind: Kind, patch_nums: Sequence[int]) -> list[Dims]:
    if kind == "ns_prefix":
        totals = [sum(pn * pn for pn in patch_nums[: k + 1]) for k in range(len(patch_nums))]
        return [
            {"T_minus_1": total - 1, "T": total, "blocks_plus_1": k + 2}
            for k, total in enumerate(totals)
            if k > 0
        ]
    if kind not in TRUNKS or kind == "embed_first":
        return [{}]
    first = 0 if kind == "ns_trunk" else 1
    return [{"l": pn * pn, "blocks_plus_1": 2} for pn in patch_nums[first:]]


def _rows(spec: GraphSpec, scale: Dims, symbols: set[str], options: EngineOptions) -> list[Dims]:
    if "B" in symbols:
        return [{"B": b} for b in options.batches]
    both, single = {2 * b for b in options.batches}, set(options.batches)
    if spec.kind == "score":
        chosen = single
    elif spec.kind == "cond":  # always of both halves; scoring has one
        chosen = both | single if "score" in options.extra else both
    elif options.guidance == "any":
        chosen = both | single
    else:
        is_first = spec.kind == "embed_first" or spec.scale_idx == 0 or scale.get("l") == 1
        chosen = single if is_first or spec.kind in MASKED else both
    return [{"N": n} for n in sorted(chosen)]


def resolve(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of a tensor where its symbolic dimensions have these sizes."""
    return tuple(d if isinstance(d, int) else dims[d] for d in spec.shape)


def nbytes(spec: TensorSpec, dims: Mapping[str, int]) -> int:
    """Bytes of a tensor of these sizes."""
    return math.prod(resolve(spec, dims), start=np.dtype(STORED_AS[spec.dtype]).itemsize)


def bind(specs: Iterable[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> Dims:
    """Sizes of the symbolic dimensions, from the inputs' shapes.

    Raises:
        ValueError: a shape does not fit its declaration, or two inputs disagree.
    """
    dims: Dims = {}
    for spec in specs:
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape):
            raise ValueError(f"input {spec.name} must be {spec.shape}, got {tuple(shape)}")
        for declared, size in zip(spec.shape, shape, strict=True):
            expected = declared if isinstance(declared, int) else dims.setdefault(declared, size)
            if size != expected:
                raise ValueError(
                    f"input {spec.name} must be {spec.shape} with {dims}, got {tuple(shape)}"
                )
    return dims


def select_profile(
    profiles: Sequence[Mapping[str, int]], dims: Mapping[str, int], max_batch: int
) -> int | None:
    """Index of the smallest profile that these sizes fit, None if there is none.

    Rows may be fewer than the profile's, since they are independent; all else must be equal.
    Profiles of more than `max_batch` images are not taken.
    """

    def fits(profile: Mapping[str, int]) -> bool:
        return all(
            size <= profile[symbol] if symbol in ROWS else size == profile[symbol]
            for symbol, size in dims.items()
        )

    fitting = [i for i, p in enumerate(profiles) if is_within(p, max_batch) and fits(p)]
    return min(fitting, key=lambda i: rows(profiles[i]), default=None)


def batches_up_to(batches: Sequence[int], max_batch: int) -> Sequence[int]:
    """Those that are needed for up to this many images at once, the smallest that fits included."""
    last = next((b for b in batches if b >= max_batch), batches[-1])
    return [b for b in batches if b <= last]


def is_within(profile: Mapping[str, int], max_batch: int) -> bool:
    """Whether a profile is for at most this many images."""
    return profile.get("B", 0) <= max_batch and profile.get("N", 0) <= 2 * max_batch


def rows(dims: Mapping[str, int]) -> int:
    """Number of rows."""
    return next(dims[symbol] for symbol in ROWS if symbol in dims)


def pad_rows(array: np.ndarray, rows: int, halves: int) -> np.ndarray:
    """The array with `rows` rows, contiguous: each half is filled up with copies of its first."""
    missing = (rows - len(array)) // halves
    parts = np.split(array, halves)
    padded = [part for half in parts for part in (half, np.repeat(half[:1], missing, axis=0))]
    return np.ascontiguousarray(np.concatenate(padded) if missing else array)


def with_totals(dims: Mapping[str, int]) -> Dims:
    """The same, with the dimension that only outputs have: `T`, all tokens of a prefix."""
    return {**dims, "T": dims["T_minus_1"] + 1} if "T_minus_1" in dims else dict(dims)


def listed(profiles: Sequence[Dims]) -> str:
    """Profiles as messages name them."""
    return ", ".join(str(p) for p in profiles)
