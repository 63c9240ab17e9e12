"""A checkpoint to a bundle folder: built beside the target, verified, then renamed."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import onnx
import onnx_ir as ir

from export.certificate import Certificate
from export.config import DTYPES, ExportConfig
from export.engines import Runner
from export.errors import GraphError, OutputError
from export.families import load_family
from export.family import Family
from export.metadata import read_class_names
from export.step import DTYPE_NAMES, Step
from export.target import beside, check_target, replace_folder
from export.weights import WeightsFile, sha256_file
from runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Bundle,
    FileSpec,
    GraphSpec,
    Manifest,
    WeightSpec,
)

logger = logging.getLogger(__name__)

GRAPHS, WEIGHTS = "graphs", "graphs/weights.bin"
CERTIFICATE, CLASS_NAMES = "certificate.json", "classes.json"
DISK_MARGIN = 64 << 20  # bytes kept free beside what the bundle needs

Progress = Callable[[str, int, int], None]
"""(stage and item, done, total)."""


def quiet(item: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export made.

    Attributes:
        description: the model in a few words.
        load_seconds: reading and checking the checkpoints.
        export_seconds: everything after that.
    """

    bundle: Path
    description: str
    manifest: Manifest
    certificate: Certificate | None
    bundle_bytes: int
    load_seconds: float
    export_seconds: float

    def summary(self) -> str:
        """A few lines for people."""
        manifest = self.manifest
        lines = [
            f"bundle       {self.bundle}",
            f"model        {self.description}, {manifest.precision}",
            f"graphs       {len(manifest.graphs)}, sharing {manifest.weights.nbytes / 1e6:.1f} MB "
            f"of weights (bundle {self.bundle_bytes / 1e6:.1f} MB)",
            f"time         {self.load_seconds:.1f} s to load, "
            f"{self.export_seconds:.1f} s to export",
        ]
        if self.certificate is None:
            return "\n".join([*lines, "parity       not checked (verification was turned off)"])
        return "\n".join([*lines, *self.certificate.summary()])


def export_bundle(
    config: ExportConfig,
    checkpoints: Sequence[Path],
    vae: Path,
    out: Path,
    *,
    class_names: Path | None = None,
    sampling: Path | None = None,
    num_iter: int | None = None,
    branch_layers: int | None = None,
    num_heads: Sequence[int] = (),
    progress: Progress = quiet,
) -> ExportReport:
    """Exports a checkpoint and its autoencoder to a bundle folder.

    The bundle is written beside `out` and renamed at the end: whatever happens on the way, `out`
    stays what it was, or absent.

    Args:
        checkpoints: a Hi-MAR file; or one merged HMAR file or stage file, or the two stage files;
            see `hmar.checkpoint.load_hmar`.
        vae: the file of the tokenizer (HMAR) or KL autoencoder (Hi-MAR).
        out: the bundle folder; replaced if it is a bundle already.
        class_names: JSON list of the classes' names, to be stored in the bundle.
        sampling: JSON object with some of the bundle's sampling defaults: fields of
            `runtime.bundle.SamplingDefaults` or `HiMARSamplingDefaults`. The others are those
            published for a model of these sizes.
        num_iter: steps of Hi-MAR's dense phase that get graphs of their own; this many are the
            default, too.
        branch_layers: for stages of HMAR whose keys do not tell; see `load_hmar`.
        num_heads: attention heads, for checkpoints whose keys do not tell: one number for HMAR;
            those of encoder, decoder and dense denoiser for Hi-MAR, see
            `hmar.himar_checkpoint.load_himar`.

    Raises:
        hmar.errors.CheckpointError: a checkpoint cannot be used.
        ExportError: the bundle cannot be written, or a graph is invalid or differs from PyTorch.
    """
    start = time.perf_counter()
    check_target(out)
    progress("reading checkpoints", 0, 1)
    family = load_family(checkpoints, vae, branch_layers=branch_layers, num_heads=num_heads)
    family = family.with_settings(sampling, num_iter)
    sources = tuple(
        FileSpec(file=path.name, sha256=sha256_file(path), nbytes=path.stat().st_size)
        for path in (*checkpoints, vae)
    )
    names = read_class_names(class_names, family.model_spec.num_classes) if class_names else ()
    loaded = time.perf_counter()
    with beside(out) as folder:
        manifest, certificate = _Writer(config, family, names, folder, progress).write(sources)
        nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        replace_folder(folder, out)
    return ExportReport(
        bundle=out,
        description=family.description,
        manifest=manifest,
        certificate=certificate,
        bundle_bytes=nbytes,
        load_seconds=loaded - start,
        export_seconds=time.perf_counter() - loaded,
    )


def verify_bundle(
    folder: Path,
    checkpoints: Sequence[Path],
    vae: Path,
    *,
    branch_layers: int | None = None,
    num_heads: Sequence[int] = (),
    runner: Runner | None = None,
    progress: Progress = quiet,
) -> Certificate:
    """Runs the validation ladder on an existing bundle; arguments as in `export_bundle`.

    Args:
        runner: measures this backend instead of checking ONNX Runtime's CPU provider.

    Raises:
        hmar.errors.CheckpointError: a checkpoint cannot be used.
        runtime.errors.BundleError: the folder is no bundle, or a file is missing or altered.
        ExportError: the checkpoint is not the bundle's, or a graph differs from PyTorch.
    """
    bundle = Bundle.open(folder)
    progress("reading checkpoints", 0, 1)
    bundle.check_files()
    manifest = bundle.manifest
    family = load_family(checkpoints, vae, branch_layers=branch_layers, num_heads=num_heads)
    family = family.of_bundle(manifest, folder)
    if runner is not None:
        report = _counted("comparing", family.measured_items(manifest), progress)
        return family.measure(runner, manifest, report)
    weights = WeightsFile(Path(WEIGHTS).name)
    family.lay_out(weights, DTYPES[manifest.precision])
    return _verify(family, folder, manifest, weights, progress)


def _verify(
    family: Family, folder: Path, manifest: Manifest, weights: WeightsFile, progress: Progress
) -> Certificate:
    report = _counted("verifying", family.verified_items(manifest), progress)
    return family.verify(folder, manifest, weights, report)


def _counted(stage: str, total: int, progress: Progress) -> Callable[[str], None]:
    """Progress of a stage from the names of its items."""
    done = iter(range(total))
    return lambda name: progress(f"{stage} {name}", next(done), total)


class _Writer:
    """One bundle in the making."""

    def __init__(
        self,
        config: ExportConfig,
        family: Family,
        class_names: Sequence[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.family, self.class_names = config, family, class_names
        self.folder, self.progress = folder, progress
        self.weights = WeightsFile(Path(WEIGHTS).name)
        self.steps = family.steps(config)

    def write(self, sources: tuple[FileSpec, ...]) -> tuple[Manifest, Certificate | None]:
        (self.folder / GRAPHS).mkdir()
        self.family.lay_out(self.weights, self.config.dtype)
        self._check_space()
        with ThreadPoolExecutor(1) as background:
            written = background.submit(self._write_weights)
            self._build_graphs()
            self.progress("writing weights", 0, 1)
            written.result()
        manifest = self._manifest(sources, self._check_graphs())
        certificate = None
        if self.config.verify:
            certificate = _verify(self.family, self.folder, manifest, self.weights, self.progress)
            (self.folder / CERTIFICATE).write_text(certificate.to_json(), encoding="utf-8")
            manifest = replace(manifest, certificate=self._file(CERTIFICATE))
        if self.class_names:
            text = json.dumps(list(self.class_names)) + "\n"
            (self.folder / CLASS_NAMES).write_text(text, encoding="utf-8")
            manifest = replace(manifest, class_names=self._file(CLASS_NAMES))
        (self.folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        return manifest, certificate

    def _check_space(self) -> None:
        needed, free = self.weights.nbytes + DISK_MARGIN, shutil.disk_usage(self.folder).free
        if free < needed:
            raise OutputError(
                f"{self.folder.parent}: no space left on the device: "
                f"the bundle needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
                "free some or choose another --out"
            )

    def _build_graphs(self) -> None:
        builder = self.family.builder(self.weights, self.config)
        for i, step in enumerate(self.steps):
            self.progress(f"building {step.name}", i, len(self.steps))
            ir.save(builder.build(step), self._path(step))

    def _write_weights(self) -> None:
        for name in self.weights.write(self.folder / WEIGHTS):
            logger.debug("wrote %s", name)

    def _check_graphs(self) -> dict[str, GraphSpec]:
        graphs = {}
        for i, step in enumerate(self.steps):
            self.progress(f"checking {step.name}", i, len(self.steps))
            try:
                onnx.checker.check_model(self._path(step), full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise GraphError(f"graph {step.name} is not valid ONNX: {error}") from error
            file = self._file(f"{GRAPHS}/{step.name}.onnx")
            graphs[step.name] = GraphSpec(
                kind=step.kind,
                scale_idx=step.scale_idx,
                step_idx=step.step_idx,
                inputs=step.inputs,
                outputs=step.outputs,
                file=file.file,
                sha256=file.sha256,
                nbytes=file.nbytes,
            )
        return graphs

    def _path(self, step: Step) -> Path:
        return self.folder / GRAPHS / f"{step.name}.onnx"

    def _file(self, name: str) -> FileSpec:
        path = self.folder / name
        return FileSpec(file=name, sha256=sha256_file(path), nbytes=path.stat().st_size)

    def _manifest(self, sources: tuple[FileSpec, ...], graphs: dict[str, GraphSpec]) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            producer=f"hmar-deploy {_version()}",
            family=self.family.name,
            precision=self.config.precision,
            opset=self.config.opset,
            model=self.family.model_spec,
            sampling=self.family.sampling_defaults,
            graphs=graphs,
            weights=self._file(WEIGHTS),
            tensors={n: _weight_spec(self.weights, n) for n in self.weights.entries},
            plugins=self.family.plugins,
            sources=sources,
        )


def _weight_spec(weights: WeightsFile, name: str) -> WeightSpec:
    entry = weights.entries[name]
    dtype = str(entry.dtype).removeprefix("torch.")
    assert dtype in DTYPE_NAMES.values(), dtype
    return WeightSpec(dtype=dtype, shape=entry.shape, offset=entry.offset)  # type: ignore[arg-type]


def _version() -> str:
    try:
        return metadata.version("hmar-deploy")
    except metadata.PackageNotFoundError:
        return "(not installed)"
