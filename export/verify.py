"""Validation ladder of a bundle against PyTorch: names, dtypes, shapes, values, tokens."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from export.errors import ParityError
from export.teacher import SEED, Arrays, TeacherRun
from export.torch_steps import TorchSteps
from hmar import reference
from hmar.config import PublishedSampling
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from runtime.bundle import GraphSpec, Manifest, SamplingDefaults

logger = logging.getLogger(__name__)

# Largest RMS error of an output relative to the RMS of the float32 reference. fp32: another order
# of summation over up to 40 blocks. Half precision: a few units of the format's rounding (2^-11,
# 2^-8).
RMS_LIMIT = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 8e-2}
# A float32 token may differ from the reference only where the two best logits are this close.
FP32_FLIP_GAP = 1e-3
# Largest fraction of tokens that an encoder may choose differently: ties between codebook rows.
ENCODE_FLIPS = 5e-3
BATCH_OF_TWO_BELOW = 50_000_000  # parameters; larger models are verified on one image, to save time
ORT_DTYPES = {
    "float32": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int32": "int32",
    "bool": "bool",
}
NUMPY_DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int32": np.int32,
    "bool": np.bool_,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """Error of one output: RMS relative to the reference's RMS, and the largest."""

    rms_ratio: float
    max_abs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """Result of one graph; `not_run` gives the reason why it could not be compared."""

    outputs: dict[str, OutputParity] = field(default_factory=dict)
    seconds: float = 0.0
    not_run: str | None = None

    @property
    def rms_ratio(self) -> float:
        return max((o.rms_ratio for o in self.outputs.values()), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenParity:
    """Choices of one pass under teacher forcing, compared with the float32 reference.

    Attributes:
        argmax_equal: tokens whose most probable value is the same.
        drawn_equal: tokens that come out the same from the same uniform numbers.
        flip_gaps: for each argmax that differs, the distance of the reference's two best logits.
    """

    scale_idx: int
    kind: str
    compared: int
    argmax_equal: int
    drawn_equal: int
    flip_gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was compared with what, and how close it came."""

    precision: str
    engine: str
    token_engine: str
    labels: tuple[int, ...]
    seed: int
    rms_limit: float
    graphs: dict[str, GraphParity]
    tokens: tuple[TokenParity, ...]
    seconds: float

    @property
    def worst_graph(self) -> str:
        return max(self.graphs, key=lambda name: self.graphs[name].rms_ratio)

    @property
    def not_run(self) -> list[str]:
        return [name for name, graph in self.graphs.items() if graph.not_run is not None]

    def agreement(self, what: str) -> float:
        """Fraction of tokens with equal `argmax` or equal `drawn` values."""
        return sum(getattr(t, f"{what}_equal") for t in self.tokens) / max(
            sum(t.compared for t in self.tokens), 1
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def table(self) -> str:
        """The ladder as text, one line per graph and one per pass."""
        lines = [f"{'graph':24} {'rms ratio':>10} {'max error':>10} {'seconds':>8}"]
        for name, graph in self.graphs.items():
            if graph.not_run is not None:
                lines.append(f"{name:24} not run: {graph.not_run}")
                continue
            worst = max(o.max_abs for o in graph.outputs.values())
            lines.append(f"{name:24} {graph.rms_ratio:10.1e} {worst:10.1e} {graph.seconds:8.2f}")
        lines += [
            "",
            f"{'pass':24} {'tokens':>7} {'argmax':>8} {'drawn':>8}  gaps of flipped argmax",
        ]
        for t in self.tokens:
            gaps = ", ".join(f"{g:.1e}" for g in sorted(t.flip_gaps)[-6:])
            name = f"{t.kind} scale {t.scale_idx}"
            lines.append(
                f"{name:24} {t.compared:7} {t.argmax_equal / t.compared:8.2%} "
                f"{t.drawn_equal / t.compared:8.2%}  {gaps}"
            )
        lines.append(
            f"{'all':24} {'':7} {self.agreement('argmax'):8.2%} {self.agreement('drawn'):8.2%}"
        )
        lines.append(f"graphs by {self.engine}; tokens by {self.token_engine}")
        return "\n".join(lines)


def verify(
    folder: Path,
    manifest: Manifest,
    model: HMAR,
    tokenizer: VQVAE,
    torch_steps: TorchSteps,
    progress: Callable[[str], None] = lambda graph: None,
) -> Certificate:
    """Runs every graph on ONNX Runtime's CPU provider and compares it with PyTorch in float32.

    Args:
        folder: where the manifest's paths start.
        torch_steps: the same modules in PyTorch at the bundle's precision; they stand in for graphs
            whose kernels the CPU provider lacks (bf16), for the comparison of tokens.
        progress: called with each graph's name before it is run.

    Raises:
        ParityError: a name, dtype, shape, value or token differs by more than the limits.
    """
    start = time.perf_counter()
    progress("PyTorch reference")
    teacher = make_teacher(manifest, model, tokenizer)
    graphs: dict[str, GraphParity] = {}
    tokens: list[TokenParity] = []
    for name, spec in manifest.graphs.items():
        progress(name)
        graphs[name], outputs = _verify_graph(
            folder / spec.file, name, spec, teacher, manifest.precision
        )
        logger.debug("verified %s in %.2f s", name, graphs[name].seconds)
        if spec.kind in ("ns", "mask"):
            logits = outputs["logits"] if outputs else _torch_logits(torch_steps, teacher, spec)
            parity = compare_tokens(spec, teacher, torch.from_numpy(logits))
            if manifest.precision == "fp32":
                _check_gaps(name, parity)
            tokens.append(parity)
    runs = f"onnxruntime {ort.__version__} CPUExecutionProvider"
    torch_runs = any(
        graphs[n].not_run for n, s in manifest.graphs.items() if s.kind in ("ns", "mask")
    )
    return Certificate(
        precision=manifest.precision,
        engine=runs,
        token_engine=f"torch {torch.__version__}, same modules in {manifest.precision}"
        if torch_runs
        else runs,
        labels=tuple(teacher.labels),
        seed=SEED,
        rms_limit=RMS_LIMIT[manifest.precision],
        graphs=graphs,
        tokens=tuple(tokens),
        seconds=round(time.perf_counter() - start, 2),
    )


def make_teacher(manifest: Manifest, model: HMAR, tokenizer: VQVAE) -> TeacherRun:
    """The run that graphs are compared with: of two images, of one for large models."""
    small = sum(p.numel() for p in model.parameters()) < BATCH_OF_TWO_BELOW
    classes = model.config.num_classes
    labels = (0, classes - 1) if small else (207 % classes,)
    published = manifest.sampling
    assert isinstance(published, SamplingDefaults)
    sampling = PublishedSampling(cfg=published.cfg, top_k=published.top_k, top_p=published.top_p)
    return TeacherRun(model, tokenizer, labels, sampling)


def _verify_graph(
    path: Path, name: str, spec: GraphSpec, teacher: TeacherRun, precision: str
) -> tuple[GraphParity, Arrays]:
    start = time.perf_counter()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # weights stay in the mapped file
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ort_errors.NotImplemented as error:
        if precision != "bf16":
            raise
        reason = str(error).split(":")[-1].strip()
        return GraphParity(not_run=f"the CPU provider lacks a bfloat16 kernel ({reason})"), {}
    _check_signature(name, "input", session.get_inputs(), spec.inputs)
    _check_signature(name, "output", session.get_outputs(), spec.outputs)
    feeds, expected = teacher.case(spec)
    results = dict(zip((o.name for o in spec.outputs), _run(session, spec, feeds), strict=True))
    parity = {}
    for output in spec.outputs:
        ref, out = expected[output.name], results[output.name]
        if out.shape != ref.shape:
            raise _parity_error(name, output.name, f"shape {out.shape}, expected {ref.shape}")
        if output.dtype == "int32":
            parity[output.name] = _compare_indices(name, output.name, ref, out)
        else:
            # a handful of close codebook rows move f_hat by more than rounding does
            limit = ENCODE_FLIPS**0.5 if spec.kind == "encode" else RMS_LIMIT[precision]
            parity[output.name] = _compare_values(
                name, output.name, ref, out.astype(np.float32), limit
            )
    return GraphParity(outputs=parity, seconds=round(time.perf_counter() - start, 3)), results


def _run(session: ort.InferenceSession, spec: GraphSpec, feeds: Arrays) -> Iterator[np.ndarray]:
    values = {}
    for i in spec.inputs:
        array = np.ascontiguousarray(feeds[i.name].astype(NUMPY_DTYPES[i.dtype]))
        if i.dtype == "bfloat16":
            values[i.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array.view(np.uint16), 16
            )
        else:
            values[i.name] = ort.OrtValue.ortvalue_from_numpy(array)
    for output, value in zip(spec.outputs, session.run_with_ort_values(None, values), strict=True):
        array = value.numpy()
        yield array.view(ml_dtypes.bfloat16) if output.dtype == "bfloat16" else array


def _check_signature(name: str, what: str, found: list, wanted: tuple) -> None:
    got = [(v.name, v.type, tuple(v.shape)) for v in found]
    want = [(s.name, f"tensor({ORT_DTYPES[s.dtype]})", tuple(s.shape)) for s in wanted]
    if got != want:
        raise _parity_error(name, what, f"signature {got}, the manifest says {want}")


def _compare_values(
    graph: str, output: str, ref: np.ndarray, out: np.ndarray, limit: float
) -> OutputParity:
    parity = output_parity(ref, out)
    if not (ratio := parity.rms_ratio) <= limit:  # also catches NaN
        raise _parity_error(
            graph,
            output,
            f"rms error ratio {ratio:.2e}, at most {limit:.0e} is accepted",
            ratio,
            limit,
        )
    return parity


def output_parity(ref: np.ndarray, out: np.ndarray) -> OutputParity:
    """The error of an output."""
    error = out.astype(np.float64) - ref
    scale = max(np.sqrt(np.mean(ref.astype(np.float64) ** 2)), 1e-12)
    return OutputParity(
        rms_ratio=float(np.sqrt(np.mean(error**2)) / scale), max_abs=float(np.abs(error).max())
    )


def _compare_indices(graph: str, output: str, ref: np.ndarray, out: np.ndarray) -> OutputParity:
    flipped = float(np.mean(ref != out))
    if flipped > ENCODE_FLIPS:
        raise _parity_error(
            graph, output, f"{flipped:.2%} of the tokens differ", flipped, ENCODE_FLIPS
        )
    return OutputParity(rms_ratio=0.0, max_abs=flipped)


def _torch_logits(steps: TorchSteps, teacher: TeacherRun, spec: GraphSpec) -> np.ndarray:
    assert spec.scale_idx is not None
    feeds, _ = teacher.case(spec)
    names: tuple[str, ...] = ("map", "h", "token_mask")
    operands = {n: torch.from_numpy(feeds[n]) for n in names if n in feeds}
    positions = teacher.model.config.scale_slices()[spec.scale_idx]
    return steps.logits(spec.kind, operands, teacher.label_N, positions).numpy()


def _check_gaps(graph: str, tokens: TokenParity) -> None:
    worst = max(tokens.flip_gaps, default=0.0)
    if worst > FP32_FLIP_GAP:
        raise _parity_error(
            graph,
            "tokens",
            f"an argmax differs though its logits are {worst:.1e} apart",
            worst,
            FP32_FLIP_GAP,
        )


def compare_tokens(spec: GraphSpec, teacher: TeacherRun, raw: torch.Tensor) -> TokenParity:
    """Tokens of an `ns` or `mask` graph from its logits, conditional half first."""
    assert spec.scale_idx is not None
    k, config = spec.scale_idx, teacher.config
    key = f"s{k}_ns" if spec.kind == "ns" else f"s{k}_m1"
    t = config.cfg * (k / teacher.last if spec.kind == "ns" else reference.MASK_CFG_RATIO)
    ref, out = (reference.guide(logits, t) for logits in (teacher.seen[f"{key}_raw"], raw))
    best = ref.topk(2, dim=-1).values
    flipped = ref.argmax(-1) != out.argmax(-1)
    gaps = tuple((best[..., 0] - best[..., 1])[flipped].tolist())
    drawn = reference.draw_inverse_cdf(teacher.uniforms)(
        key, reference.truncate(out, config.top_k, config.top_p)
    )
    return TokenParity(
        scale_idx=k,
        kind=spec.kind,
        compared=flipped.numel(),
        argmax_equal=int((~flipped).sum()),
        drawn_equal=int((drawn == teacher.seen[f"{key}_drawn"]).sum()),
        flip_gaps=gaps,
    )


def _parity_error(
    graph: str, output: str, what: str, ratio: float = float("inf"), limit: float = 0.0
) -> ParityError:
    message = (
        f"graph {graph}, {output}: {what}; "
        "the bundle is not usable, please report the model's sizes"
    )
    return ParityError(message, graph=graph, output=output, rms_ratio=ratio, limit=limit)
