"""The bundle on disk: its manifest, read and validated.

The single module of this package that the exporter imports: what is written is what is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from runtime.errors import ChecksumError, ManifestError
from runtime.records import mapping, record

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

DtypeName = Literal["float32", "float16", "bfloat16", "int32", "bool"]
Kind = Literal[
    "cond", "embed_first", "embed_ns", "embed_mask", "ns_trunk", "mask_trunk", "ns_prefix",
    "ns", "mask", "mask_input", "quant", "decode", "encode", "score",
    "pivot", "dense", "denoise_pivot", "denoise_dense", "decode_pivot",
    "denoise_pivot_unguided", "denoise_dense_unguided", "modulate_pivot", "denoise_pivot_modulated",
]  # fmt: skip

Family = Literal["hmar", "himar"]

STORED_AS: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int32": np.int32,
    "bool": np.bool_,
}
"""NumPy types of the same bytes; NumPy itself has no bfloat16."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a graph input or output; strings are symbolic dimensions."""

    name: str
    dtype: DtypeName
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """Where a tensor lies in the weights file."""

    dtype: DtypeName
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """A file of the bundle, relative to its folder."""

    file: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec(FileSpec):
    """One graph: what it does, at which scale or step, and its inputs and outputs in order.

    Attributes:
        scale_idx: HMAR's scale; None = any.
        step_idx: Hi-MAR's step of a phase under the bundle's `num_iter`; None = any but the first.
    """

    kind: Kind
    scale_idx: int | None = None
    step_idx: int | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSpec:
    """A custom op that the graphs hold, with a body of standard ops for runtimes without it."""

    domain: str
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Sizes of HMAR's transformer and tokenizer that the runtime needs."""

    preset: str | None
    depth: int
    branch_layers: int
    embed_dim: int
    num_heads: int
    num_classes: int
    vocab_size: int
    latent_channels: int
    patch_nums: tuple[int, ...]
    shared_aln: bool
    attn_l2_norm: bool
    has_mask_branch: bool
    image_side_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARModelSpec:
    """Sizes of Hi-MAR's model and autoencoder that the runtime needs.

    Attributes:
        num_classes: rows of the class embedding; 0 = generations are given a vector per image.
        pivot_side, dense_side: sides of both token grids.
        num_iter: steps of the second phase that the bundle has graphs of their own for.
        latent_scale: tokens are latents of the autoencoder times this; where a manifest does not
            say it, it is the published one.
    """

    preset: str | None
    embed_dim: int
    encoder_depth: int
    decoder_depth: int
    num_classes: int
    token_channels: int
    pivot_side: int
    dense_side: int
    num_iter: int
    image_side_px: int
    latent_scale: float = 0.2325

    @property
    def num_pivots(self) -> int:
        return self.pivot_side**2

    @property
    def num_dense(self) -> int:
        return self.dense_side**2

    @property
    def pivot_steps(self) -> int:
        """Steps of the first phase."""
        return 4 * self.pivot_side


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Settings that an HMAR model was published with."""

    cfg: float
    top_k: int
    top_p: float
    mask_schedule: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARSamplingDefaults:
    """Settings that a Hi-MAR model was published with; see `HiMARSamplingConfig`."""

    num_iter: int
    cfg: float
    re_cfg: float
    cfg_schedule: Literal["linear", "constant"]
    temperature: float
    pivot_diffusion_steps: str
    dense_diffusion_steps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything the runtime needs to know of a bundle.

    Attributes:
        model, sampling: of the family; `hmar` and `himar` are `model` of the one or the other.
    """

    format_version: int
    producer: str
    family: Family
    precision: Literal["fp32", "fp16", "bf16"]
    opset: int
    model: ModelSpec | HiMARModelSpec
    sampling: SamplingDefaults | HiMARSamplingDefaults
    graphs: dict[str, GraphSpec]
    weights: FileSpec
    tensors: dict[str, WeightSpec]
    plugins: tuple[PluginSpec, ...]
    sources: tuple[FileSpec, ...]
    certificate: FileSpec | None = None
    class_names: FileSpec | None = None

    @property
    def files(self) -> list[FileSpec]:
        """Every file of the bundle but the manifest itself."""
        optional = [spec for spec in (self.certificate, self.class_names) if spec is not None]
        return [*self.graphs.values(), self.weights, *optional]

    @property
    def hmar(self) -> ModelSpec:
        """The model of an HMAR bundle; ManifestError for another."""
        if not isinstance(self.model, ModelSpec):
            raise ManifestError(
                f"this needs a bundle of HMAR; this one is of family {self.family!r}"
            )
        return self.model

    @property
    def himar(self) -> HiMARModelSpec:
        """The model of a Hi-MAR bundle; ManifestError for another."""
        if not isinstance(self.model, HiMARModelSpec):
            raise ManifestError(
                f"this needs a bundle of Hi-MAR; this one is of family {self.family!r}"
            )
        return self.model

    def graph(
        self, kind: Kind, scale_idx: int | None = None, *, step_idx: int | None = None
    ) -> str:
        """Name of the graph of a kind, at a scale or step.

        Raises:
            ManifestError: the bundle has no such graph.
        """
        wanted = (kind, scale_idx, step_idx)
        for name, spec in self.graphs.items():
            if (spec.kind, spec.scale_idx, spec.step_idx) == wanted:
                return name
        at = "" if scale_idx is None else f" for scale {scale_idx}"
        at += "" if step_idx is None else f" for step {step_idx}"
        raise ManifestError(
            f"the bundle has no {kind!r} graph{at}; "
            f"it has {sorted({g.kind for g in self.graphs.values()})}"
        )

    def to_json(self) -> str:
        """The manifest as it is written; tensor and graph entries take one line each."""
        return _dump(dataclasses.asdict(self)) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder whose manifest has been read and whose paths stay inside it."""

    folder: Path
    manifest: Manifest = field(repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Reads and validates the manifest; no other file is read.

        Raises:
            ManifestError: there is no manifest, it is not of this version, or it is inconsistent.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(
                f"{folder}: no bundle here ({error}); make one with scripts/export.py"
            ) from error
        return cls(folder, parse_manifest(text, str(path)))

    def path(self, spec: FileSpec) -> Path:
        """Full path of a file of the bundle."""
        return self.folder / spec.file

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order; empty where the bundle has none.

        Raises:
            ManifestError: the names file does not fit the model.
        """
        spec = self.manifest.class_names
        if spec is None:
            return ()
        path = self.path(spec)
        try:
            text = path.read_text(encoding="utf-8")
            return parse_class_names(text, str(path), self.manifest.model.num_classes)
        except (OSError, ValueError) as error:
            raise ManifestError(str(error)) from error

    def check_files(
        self, *, weights: bool = True, progress: Callable[[str], None] = lambda file: None
    ) -> None:
        """Compares sizes and SHA-256 of all files with the manifest.

        Args:
            weights: also hash the weights file (about a second per GB); its size is checked anyway.
            progress: called with each file's name before it is read.

        Raises:
            ChecksumError: a file is missing or altered.
        """
        for spec in self.manifest.files:
            progress(spec.file)
            path = self.path(spec)
            again = "export the bundle again or copy it anew"
            if not path.is_file():
                raise ChecksumError(f"{path}: missing, though the manifest lists it; {again}")
            if path.stat().st_size != spec.nbytes:
                raise ChecksumError(
                    f"{path}: {path.stat().st_size} bytes, the manifest says {spec.nbytes}; {again}"
                )
            if spec is self.manifest.weights and not weights:
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != spec.sha256:
                raise ChecksumError(
                    f"{path}: altered (sha256 {digest[:12]}…, "
                    f"the manifest says {spec.sha256[:12]}…); {again}"
                )


def parse_class_names(text: str, source: str, num_classes: int) -> tuple[str, ...]:
    """Names of the classes, in label order, from a JSON list.

    Raises:
        ValueError: not a list of `num_classes` different names, or a name that reads as a number.
    """
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{source}: expected a JSON list of class names")
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(
            f"{source}: expected {num_classes} different names, got {len(names)} "
            f"({len(set(names))} different)"
        )
    if odd := [n for n in names if n.lstrip("-").isdigit() or "," in n]:
        raise ValueError(f"{source}: names must not be numbers or hold commas: {odd}")
    return tuple(names)


def parse_manifest(text: str, source: str) -> Manifest:
    """A manifest from its JSON text.

    Raises:
        ManifestError: unknown version, unknown or missing fields, wrong types, or paths that leave
            the bundle.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{source}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ManifestError(f"{source}: expected an object, got {type(data).__name__}")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"{source}: format version {version!r}, this release reads version {FORMAT_VERSION}; "
            "export the checkpoint again or use the release that made the bundle"
        )
    if data.get("family") not in get_args(Family):
        raise ManifestError(
            f"{source}: family is {data.get('family')!r}, this release knows {get_args(Family)}"
        )
    try:
        if data["family"] == "hmar":
            data["model"] = record(ModelSpec, data.get("model"), "model", patch_nums=_tuple)
            data["sampling"] = record(
                SamplingDefaults, data.get("sampling"), "sampling", mask_schedule=_schedule
            )
        else:
            data["model"] = record(HiMARModelSpec, data.get("model"), "model")
            data["sampling"] = record(HiMARSamplingDefaults, data.get("sampling"), "sampling")
        data["graphs"] = {
            n: _graph(g, f"graphs.{n}") for n, g in mapping(data.get("graphs"), "graphs").items()
        }
        data["weights"] = record(FileSpec, data.get("weights"), "weights")
        data["tensors"] = {
            n: record(WeightSpec, t, f"tensors.{n}", shape=_tuple)
            for n, t in mapping(data.get("tensors"), "tensors").items()
        }
        data["plugins"] = tuple(record(PluginSpec, p, "plugins") for p in data.get("plugins", ()))
        data["sources"] = tuple(record(FileSpec, s, "sources") for s in data.get("sources", ()))
        for optional in ("certificate", "class_names"):
            if data.get(optional) is not None:
                data[optional] = record(FileSpec, data[optional], optional)
        manifest = record(Manifest, data, "manifest")
        _check(manifest)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ManifestError(f"{source}: {error}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    for spec in manifest.files:
        path = PurePosixPath(spec.file)
        if path.is_absolute() or ".." in path.parts or "\\" in spec.file or not path.parts:
            raise ValueError(f"path {spec.file!r} leaves the bundle")
    if isinstance(manifest.model, HiMARModelSpec):
        scale = manifest.model.latent_scale
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ValueError(f"model.latent_scale is {scale!r}, it must be a positive number")
    if manifest.precision not in ("fp32", "fp16", "bf16"):
        raise ValueError(f"precision is {manifest.precision!r}")
    kinds = get_args(Kind)
    for name, graph in manifest.graphs.items():
        if graph.kind not in kinds:
            raise ValueError(f"graph {name} is of unknown kind {graph.kind!r}")
    for name, tensor in manifest.tensors.items():
        size = np.dtype(STORED_AS[tensor.dtype]).itemsize
        for dim in tensor.shape:
            size *= dim
        if tensor.offset < 0 or tensor.offset + size > manifest.weights.nbytes:
            raise ValueError(f"tensor {name} lies outside the weights file")


def _graph(data: Any, where: str) -> GraphSpec:
    def tensors(items: Any) -> tuple[TensorSpec, ...]:
        return tuple(record(TensorSpec, item, where, shape=_tuple) for item in items)

    return record(GraphSpec, data, where, inputs=tensors, outputs=tensors)


def _tuple(items: Any) -> tuple[Any, ...]:
    return tuple(items)


def _schedule(entries: Any) -> tuple[tuple[int, ...], ...] | None:
    return None if entries is None else tuple(tuple(entry) for entry in entries)


def _dump(data: dict[str, Any]) -> str:
    parts = []
    for key, value in data.items():
        if key in ("graphs", "tensors") and value:
            lines = ",\n".join(f"    {json.dumps(n)}: {json.dumps(v)}" for n, v in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n{lines}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}"
