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

from export.config import DTYPES, ExportConfig
from export.errors import ExportError, GraphError, OutputError
from export.graphs import GraphBuilder
from export.metadata import model_spec, read_class_names, sampling_defaults
from export.pieces import pieces_for
from export.steps import DTYPE_NAMES, Catalogue, StepSpec
from export.target import beside, check_target, replace_folder
from export.tensors import lay_out
from export.torch_steps import TorchSteps
from export.verify import Certificate, verify
from export.verify_backend import KINDS, Runner, verify_backend
from export.weights import WeightsFile, sha256_file
from hmar.checkpoint import check_pair, load_hmar, load_tokenizer
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from plugins_trt.block_sparse_attn.spec import OP_DOMAIN, OP_NAME, PLUGIN_VERSION
from runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Bundle,
    FileSpec,
    GraphSpec,
    Manifest,
    PluginSpec,
    SamplingDefaults,
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
        load_seconds: reading and checking the checkpoints.
        export_seconds: everything after that.
    """

    bundle: Path
    manifest: Manifest
    certificate: Certificate | None
    bundle_bytes: int
    load_seconds: float
    export_seconds: float

    def summary(self) -> str:
        """A few lines for people."""
        manifest, model = self.manifest, self.manifest.hmar
        name = model.preset or f"HMAR depth {model.depth}, width {model.embed_dim}"
        lines = [
            f"bundle       {self.bundle}",
            f"model        {name}, {model.image_side_px} px, {model.num_classes} classes, "
            f"{manifest.precision}",
            f"graphs       {len(manifest.graphs)}, sharing {manifest.weights.nbytes / 1e6:.1f} MB "
            f"of weights (bundle {self.bundle_bytes / 1e6:.1f} MB)",
            f"time         {self.load_seconds:.1f} s to load, "
            f"{self.export_seconds:.1f} s to export",
        ]
        cert = self.certificate
        if cert is None:
            return "\n".join([*lines, "parity       not checked (verification was turned off)"])
        worst = cert.worst_graph
        lines.append(
            f"parity       worst graph {worst}: rms error {cert.graphs[worst].rms_ratio:.1e} "
            f"of the reference's rms (limit {cert.rms_limit:.0e})"
        )
        lines.append(
            f"tokens       {cert.agreement('argmax'):.2%} of the argmax and "
            f"{cert.agreement('drawn'):.2%} of the drawn tokens as in float32 PyTorch, "
            f"by {cert.token_engine}"
        )
        if cert.not_run:
            reason = cert.graphs[cert.not_run[0]].not_run
            lines.append(f"not run      {len(cert.not_run)} graphs: {reason}")
        return "\n".join(lines)


def export_bundle(
    config: ExportConfig,
    checkpoints: Sequence[Path],
    vae: Path,
    out: Path,
    *,
    class_names: Path | None = None,
    sampling: Path | None = None,
    branch_layers: int | None = None,
    num_heads: int | None = None,
    progress: Progress = quiet,
) -> ExportReport:
    """Exports a checkpoint and its tokenizer to a bundle folder.

    The bundle is written beside `out` and renamed at the end: whatever happens on the way, `out`
    stays what it was, or absent.

    Args:
        checkpoints: one merged file or stage file, or the two stage files; see
            `hmar.checkpoint.load_hmar`.
        vae: the tokenizer's file.
        out: the bundle folder; replaced if it is a bundle already.
        class_names: JSON list of the classes' names, to be stored in the bundle.
        sampling: JSON object with `cfg`, `top_k`, `top_p` or `mask_schedule`, the bundle's
            defaults. Otherwise those published for a model of this depth.
        branch_layers, num_heads: for checkpoints whose keys do not tell; see `load_hmar`.

    Raises:
        hmar.errors.CheckpointError: a checkpoint cannot be used.
        ExportError: the bundle cannot be written, or a graph is invalid or differs from PyTorch.
    """
    start = time.perf_counter()
    check_target(out)
    progress("reading checkpoints", 0, 1)
    model, tokenizer = _load(checkpoints, vae, branch_layers, num_heads)
    sources = tuple(
        FileSpec(file=path.name, sha256=sha256_file(path), nbytes=path.stat().st_size)
        for path in (*checkpoints, vae)
    )
    names = read_class_names(class_names, model.config.num_classes) if class_names else ()
    defaults = sampling_defaults(model.config, sampling)
    loaded = time.perf_counter()
    with beside(out) as folder:
        writer = _Writer(config, model, tokenizer, defaults, names, folder, progress)
        manifest, certificate = writer.write(sources)
        nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        replace_folder(folder, out)
    return ExportReport(
        bundle=out,
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
    num_heads: int | None = None,
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
    model, tokenizer = _load(checkpoints, vae, branch_layers, num_heads)
    manifest = bundle.manifest
    if model_spec(model, tokenizer) != manifest.model:
        raise ExportError(
            f"{folder}: exported from a model of other sizes: {manifest.model}, the checkpoint is "
            f"{model_spec(model, tokenizer)}"
        )
    if runner is not None:
        measured = [name for name, spec in manifest.graphs.items() if spec.kind in KINDS]
        done = iter(range(len(measured) + 1))
        return verify_backend(
            runner,
            manifest,
            model,
            tokenizer,
            lambda name: progress(f"comparing {name}", next(done), len(measured) + 1),
        )
    weights = WeightsFile(Path(WEIGHTS).name)
    lay_out(weights, model, tokenizer, DTYPES[manifest.precision])
    return _run_ladder(folder, manifest, model, tokenizer, weights, progress)


def _load(
    checkpoints: Sequence[Path], vae: Path, branch_layers: int | None, num_heads: int | None
) -> tuple[HMAR, VQVAE]:
    model = load_hmar(checkpoints, branch_layers=branch_layers, num_heads=num_heads)
    tokenizer = load_tokenizer(vae, model.config.patch_nums)
    check_pair(model, tokenizer)
    return model, tokenizer


def _run_ladder(
    folder: Path,
    manifest: Manifest,
    model: HMAR,
    tokenizer: VQVAE,
    weights: WeightsFile,
    progress: Progress,
) -> Certificate:
    total = len(manifest.graphs) + 1
    done = iter(range(total))
    return verify(
        folder,
        manifest,
        model,
        tokenizer,
        TorchSteps(model.config, weights),
        lambda name: progress(f"verifying {name}", next(done), total),
    )


class _Writer:
    """One bundle in the making."""

    def __init__(
        self,
        config: ExportConfig,
        model: HMAR,
        tokenizer: VQVAE,
        sampling: SamplingDefaults,
        class_names: Sequence[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.sampling, self.class_names = sampling, class_names
        self.folder, self.progress = folder, progress
        self.weights = WeightsFile(Path(WEIGHTS).name)
        self.steps = Catalogue(model.config, tokenizer.config, config.precision).steps()

    def write(self, sources: tuple[FileSpec, ...]) -> tuple[Manifest, Certificate | None]:
        (self.folder / GRAPHS).mkdir()
        lay_out(self.weights, self.model, self.tokenizer, self.config.dtype)
        self._check_space()
        with ThreadPoolExecutor(1) as background:
            written = background.submit(self._write_weights)
            self._build_graphs()
            self.progress("writing weights", 0, 1)
            written.result()
        manifest = self._manifest(sources, self._check_graphs())
        certificate = None
        if self.config.verify:
            certificate = _run_ladder(
                self.folder, manifest, self.model, self.tokenizer, self.weights, self.progress
            )
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
        pieces = pieces_for(
            self.model.config, self.tokenizer.config, self.config.dtype, self.config.opset
        )
        builder = GraphBuilder(self.model.config, pieces, self.weights, self.config.opset)
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
                inputs=step.inputs,
                outputs=step.outputs,
                file=file.file,
                sha256=file.sha256,
                nbytes=file.nbytes,
            )
        return graphs

    def _path(self, step: StepSpec) -> Path:
        return self.folder / GRAPHS / f"{step.name}.onnx"

    def _file(self, name: str) -> FileSpec:
        path = self.folder / name
        return FileSpec(file=name, sha256=sha256_file(path), nbytes=path.stat().st_size)

    def _manifest(self, sources: tuple[FileSpec, ...], graphs: dict[str, GraphSpec]) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            producer=f"hmar-deploy {_version()}",
            family="hmar",
            precision=self.config.precision,
            opset=self.config.opset,
            model=model_spec(self.model, self.tokenizer),
            sampling=self.sampling,
            graphs=graphs,
            weights=self._file(WEIGHTS),
            tensors={n: _weight_spec(self.weights, n) for n in self.weights.entries},
            plugins=(PluginSpec(domain=OP_DOMAIN, name=OP_NAME, version=PLUGIN_VERSION),),
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
