"""Validation ladder of a Hi-MAR bundle against PyTorch: every graph, and a whole generation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.certificate import Certificate, GraphParity, OutputParity
from export.engines import BackendEngine, CpuEngine, Engine, Runner
from export.himar.feeds import Tensors
from export.himar.generation import GraphGeneration
from export.himar.teacher import SAMPLING, SEED, TeacherRun, arrays, condition_vectors
from export.ladder import RMS_LIMIT, compare_values, output_parity, parity_error
from hmar.himar import HiMAR
from hmar.kl_vae import KLVAE
from runtime.bundle import GraphSpec, Kind, Manifest

logger = logging.getLogger(__name__)

# A generation adds up what its graphs differ by, over all steps and diffusion steps. In half
# precision it is measured and not limited: rounding leads to another, equally likely sample.
FP32_GENERATION_LIMIT = 2e-4
# Larger models, by parameters, are verified on one image without guidance, and only the last pivot
# steps of the generation run on the graphs' own results: to save time.
SMALL_BELOW = 50_000_000
LAST_PIVOT_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParity:
    """One generation by the graphs alone, with the noise and the orders of the reference.

    Attributes:
        first_pivot_step: before it, the state is the reference's.
        pivot_diffusion_steps, dense_diffusion_steps: as in `HiMARSamplingDefaults`.
        outputs: errors of `pivots`, `dense` tokens and `image`.
    """

    first_pivot_step: int
    cfg: float
    re_cfg: float
    num_iter: int
    pivot_diffusion_steps: str
    dense_diffusion_steps: str
    outputs: dict[str, OutputParity]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationCertificate(Certificate):
    """Certificate of a Hi-MAR bundle: graphs, and a generation."""

    generation: GenerationParity

    def run_summary(self) -> str:
        found = self.generation.outputs
        errors = ", ".join(f"{name} {parity.rms_ratio:.1e}" for name, parity in found.items())
        return f"generation   rms errors with the reference's noise: {errors}"

    def run_table(self) -> list[str]:
        run = self.generation
        lines = [
            f"generation from pivot step {run.first_pivot_step}, {run.num_iter} dense steps, "
            f"cfg {run.cfg:g}, re_cfg {run.re_cfg:g}, diffusion steps "
            f"{run.pivot_diffusion_steps} and {run.dense_diffusion_steps}",
            f"{'result':24} {'rms ratio':>10} {'max error':>10}",
        ]
        for name, parity in run.outputs.items():
            lines.append(f"{name:24} {parity.rms_ratio:10.1e} {parity.max_abs:10.1e}")
        return [*lines, f"by {self.engine}"]


def make_teacher(manifest: Manifest, model: HiMAR, vae: KLVAE) -> TeacherRun:
    """The generation that graphs are compared with."""
    sampling = replace(SAMPLING, num_iter=manifest.himar.num_iter)
    if not is_small(model):
        sampling = replace(sampling, cfg=1.0, re_cfg=1.0)
    classes, images = model.config.num_classes, 2 if is_small(model) else 1
    if not classes:
        vectors = condition_vectors(images, model.config.embed_dim)
        return TeacherRun(model, vae, vectors, (), sampling)
    labels = (0, classes - 1) if images == 2 else (207 % classes,)
    return TeacherRun(model, vae, model.cond(labels), labels, sampling)


def is_small(model: HiMAR) -> bool:
    """Whether everything can be compared in little time."""
    return sum(p.numel() for p in model.parameters()) < SMALL_BELOW


def verify(
    folder: Path,
    manifest: Manifest,
    model: HiMAR,
    vae: KLVAE,
    progress: Callable[[str], None] = lambda graph: None,
) -> GenerationCertificate:
    """Runs every graph on ONNX Runtime's CPU provider and compares it with PyTorch in float32.

    Args:
        folder: where the manifest's paths start.
        progress: called with each graph's name before it is run.

    Raises:
        ParityError: a name, dtype, shape, value or, in fp32, a result of the generation differs by
            more than the limits.
    """
    small = is_small(model)
    engine = CpuEngine(folder, manifest, kept=len(manifest.graphs) if small else 1)
    first = 0 if small else model.config.pivot_steps - LAST_PIVOT_STEPS
    limit = RMS_LIMIT[manifest.precision]
    certificate = _certify(engine, manifest, model, vae, first, limit, progress)
    if manifest.precision == "fp32":
        _check_generation(certificate.generation)
    return certificate


def measure(
    runner: Runner,
    manifest: Manifest,
    model: HiMAR,
    vae: KLVAE,
    progress: Callable[[str], None] = lambda graph: None,
) -> GenerationCertificate:
    """What `verify` does, on a backend and without limits.

    Raises:
        BackendError: a graph cannot be run.
    """
    engine = BackendEngine(runner, manifest)
    return _certify(engine, manifest, model, vae, 0, float("inf"), progress)


def _certify(
    engine: Engine,
    manifest: Manifest,
    model: HiMAR,
    vae: KLVAE,
    first_pivot_step: int,
    limit: float,
    progress: Callable[[str], None],
) -> GenerationCertificate:
    start = time.perf_counter()
    progress("PyTorch reference")
    teacher = make_teacher(manifest, model, vae)
    graphs = {}
    for name, spec in manifest.graphs.items():
        progress(name)
        graphs[name] = _compare_graph(engine, name, spec, teacher, limit)
        logger.debug("verified %s in %.2f s", name, graphs[name].seconds)
    progress("a generation")
    return GenerationCertificate(
        precision=manifest.precision,
        engine=engine.name,
        labels=teacher.labels,
        seed=SEED,
        rms_limit=limit,
        graphs=graphs,
        generation=_compare_generation(engine, manifest, teacher, first_pivot_step),
        seconds=round(time.perf_counter() - start, 2),
    )


def _compare_graph(
    engine: Engine, name: str, spec: GraphSpec, teacher: TeacherRun, limit: float
) -> GraphParity:
    feeds, expected = teacher.case(spec)
    start = time.perf_counter()
    results = engine.run(name, feeds)
    outputs = {
        output: compare_values(name, output, ref, results[output], limit)
        for output, ref in expected.items()
    }
    seconds = round(time.perf_counter() - start, 3)
    return GraphParity(outputs=outputs, seconds=seconds, stand_in=engine.stand_in(name))


def _compare_generation(
    engine: Engine, manifest: Manifest, teacher: TeacherRun, first_pivot_step: int
) -> GenerationParity:
    def run(kind: Kind, step_idx: int | None, feeds: Tensors) -> Tensors:
        results = engine.run(manifest.graph(kind, step_idx=step_idx), arrays(feeds))
        return {name: torch.from_numpy(array) for name, array in results.items()}

    sampling = teacher.sampling
    *cond, no_cond = run("cond", None, {"label": teacher.label_N})["cond"]
    generation = GraphGeneration(
        run,
        teacher.config,
        torch.stack(cond) if cond else teacher.cond_BD,
        no_cond[None],
        teacher.orders_BS,
        sampling,
        teacher.noise,
    )
    pivots, dense = generation.tokens(teacher.pivot_state(first_pivot_step))
    image = run("decode", None, {"tokens": dense})["image"]
    results = arrays({"pivots": pivots, "dense": dense, "image": image})
    expected = arrays(teacher.results)
    return GenerationParity(
        first_pivot_step=first_pivot_step,
        cfg=sampling.cfg,
        re_cfg=sampling.re_cfg,
        num_iter=sampling.num_iter,
        pivot_diffusion_steps=sampling.pivot_respacing,
        dense_diffusion_steps=sampling.dense_respacing,
        outputs={name: output_parity(ref, results[name]) for name, ref in expected.items()},
    )


def _check_generation(run: GenerationParity) -> None:
    for name, found in run.outputs.items():
        if not found.rms_ratio <= FP32_GENERATION_LIMIT:  # also catches NaN
            what = (
                f"rms error ratio {found.rms_ratio:.2e} of a whole generation, "
                f"at most {FP32_GENERATION_LIMIT:.0e} is accepted"
            )
            raise parity_error("all", name, what, found.rms_ratio, FP32_GENERATION_LIMIT)
