"""Validation ladder of a bundle against PyTorch: names, dtypes, shapes, values, tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.certificate import Certificate, GraphParity, OutputParity
from export.ladder import (
    ENGINE,
    RMS_LIMIT,
    Arrays,
    GraphSession,
    MissingKernelError,
    check_shape,
    compare_values,
    parity_error,
)
from export.teacher import SEED, TeacherRun
from export.torch_steps import TorchSteps
from hmar import reference
from hmar.config import PublishedSampling
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from runtime.bundle import GraphSpec, Manifest, SamplingDefaults

logger = logging.getLogger(__name__)

# A float32 token may differ from the reference only where the two best logits are this close.
FP32_FLIP_GAP = 1e-3
# Largest fraction of tokens that an encoder may choose differently: ties between codebook rows.
ENCODE_FLIPS = 5e-3
BATCH_OF_TWO_BELOW = 50_000_000  # parameters; larger models are verified on one image, to save time


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
class TokenCertificate(Certificate):
    """Certificate of an HMAR bundle: graphs, and the tokens that they choose.

    Attributes:
        token_engine: what ran the passes whose tokens are compared.
    """

    token_engine: str
    tokens: tuple[TokenParity, ...]

    def agreement(self, what: str) -> float:
        """Fraction of tokens with equal `argmax` or equal `drawn` values."""
        return sum(getattr(t, f"{what}_equal") for t in self.tokens) / max(
            sum(t.compared for t in self.tokens), 1
        )

    def run_summary(self) -> str:
        return (
            f"tokens       {self.agreement('argmax'):.2%} of the argmax and "
            f"{self.agreement('drawn'):.2%} of the drawn tokens as in float32 PyTorch, "
            f"by {self.token_engine}"
        )

    def run_table(self) -> list[str]:
        lines = [f"{'pass':24} {'tokens':>7} {'argmax':>8} {'drawn':>8}  gaps of flipped argmax"]
        for t in self.tokens:
            gaps = ", ".join(f"{g:.1e}" for g in sorted(t.flip_gaps)[-6:])
            name = f"{t.kind} scale {t.scale_idx}"
            lines.append(
                f"{name:24} {t.compared:7} {t.argmax_equal / t.compared:8.2%} "
                f"{t.drawn_equal / t.compared:8.2%}  {gaps}"
            )
        return [
            *lines,
            f"{'all':24} {'':7} {self.agreement('argmax'):8.2%} {self.agreement('drawn'):8.2%}",
            f"graphs by {self.engine}; tokens by {self.token_engine}",
        ]


def verify(
    folder: Path,
    manifest: Manifest,
    model: HMAR,
    tokenizer: VQVAE,
    torch_steps: TorchSteps,
    progress: Callable[[str], None] = lambda graph: None,
) -> TokenCertificate:
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
    torch_runs = any(
        graphs[n].not_run for n, s in manifest.graphs.items() if s.kind in ("ns", "mask")
    )
    return TokenCertificate(
        precision=manifest.precision,
        engine=ENGINE,
        token_engine=f"torch {torch.__version__}, same modules in {manifest.precision}"
        if torch_runs
        else ENGINE,
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
    try:
        session = GraphSession(path, name, spec)
    except MissingKernelError as error:
        if precision != "bf16":
            raise
        return GraphParity(not_run=f"the CPU provider lacks a bfloat16 kernel ({error})"), {}
    feeds, expected = teacher.case(spec)
    results = session.run(feeds)
    parity = {}
    for output in spec.outputs:
        ref, out = expected[output.name], results[output.name]
        if output.dtype == "int32":
            parity[output.name] = _compare_indices(name, output.name, ref, out)
        else:
            # a handful of close codebook rows move f_hat by more than rounding does
            limit = ENCODE_FLIPS**0.5 if spec.kind == "encode" else RMS_LIMIT[precision]
            parity[output.name] = compare_values(name, output.name, ref, out, limit)
    return GraphParity(outputs=parity, seconds=round(time.perf_counter() - start, 3)), results


def _compare_indices(graph: str, output: str, ref: np.ndarray, out: np.ndarray) -> OutputParity:
    check_shape(graph, output, ref, out)
    flipped = float(np.mean(ref != out))
    if flipped > ENCODE_FLIPS:
        raise parity_error(
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
        raise parity_error(
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
