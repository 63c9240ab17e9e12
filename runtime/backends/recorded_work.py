"""Which work on a GPU the recordings of a bundle are of, by settings and batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.backends.generation import Plan
from runtime.bundle import Manifest
from runtime.config import SamplingConfig
from runtime.denoising import DENOISERS
from runtime.diffusion import respaced_timesteps
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_schedule import Phase, plan

Settings = SamplingConfig | HiMARSamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWork:
    """A run of a graph.

    Attributes:
        batch: images.
        dims: its symbolic dimensions and their sizes.
    """

    batch: int
    graph: str
    dims: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWork:
    """The sampling of a Hi-MAR step.

    Attributes:
        length: tokens of an image.
        diffusion_steps: as of `runtime.diffusion.respaced_timesteps`.
    """

    batch: int
    phase: Phase
    is_guided: bool
    length: int
    diffusion_steps: str

    @property
    def timesteps(self) -> tuple[int, ...]:
        return respaced_timesteps(self.diffusion_steps)

    def graph(self, manifest: Manifest) -> str:
        return manifest.graph(DENOISERS[self.phase, self.is_guided])


Work = Plan | GraphWork | SamplingWork


def work_of(
    manifest: Manifest,
    batches: Sequence[int],
    settings: Sequence[Settings],
    *,
    has_steps: bool = True,
    has_encoder: bool = False,
) -> list[Work]:
    """All work of a bundle's generations with some settings, each once.

    Args:
        has_steps: of HMAR also the graphs of every step, for generations that do not go at once.
        has_encoder: also encoding.
    """
    found: dict[Work, None] = {}
    for batch in batches:
        for sampling in settings:
            if not isinstance(sampling, SamplingConfig):
                found |= dict.fromkeys(_himar(manifest, sampling, batch))
                continue
            plan = Plan.of(sampling, manifest.hmar, batch)
            found[plan] = None
            if has_steps:
                found |= dict.fromkeys(_hmar_steps(manifest, plan))
        if has_encoder:
            found[_graph(manifest.graph("encode"), batch, B=batch)] = None
    return list(found)


def _graph(name: str, batch: int, **dims: int) -> GraphWork:
    return GraphWork(batch=batch, graph=name, dims=tuple(dims.items()))


def _hmar_steps(manifest: Manifest, plan: Plan) -> Iterator[Work]:
    """Passes of all scales, guided as in a plan, whatever its schedule."""
    B = plan.batch
    yield _graph(manifest.graph("cond"), B, N=2 * B)
    for k, is_guided in enumerate(plan.is_guided):
        yield _graph(manifest.graph("ns", k), B, N=(1 + is_guided) * B)
        if k > 0 and manifest.hmar.has_mask_branch:
            yield _graph(manifest.graph("mask_input", k), B, B=B)
            yield _graph(manifest.graph("mask", k), B, N=(1 + plan.is_mask_guided) * B)
        yield _graph(manifest.graph("quant", k), B, B=B)
    yield _graph(manifest.graph("decode"), B, B=B)


def _himar(manifest: Manifest, config: HiMARSamplingConfig, batch: int) -> Iterator[Work]:
    """Passes go through the graphs that all steps but the first have in common."""

    def graph(name: str, **dims: int) -> GraphWork:
        return _graph(name, batch, **dims)

    def sampling(phase: Phase, guidance: float, length: int, diffusion_steps: str) -> SamplingWork:
        return SamplingWork(
            batch=batch,
            phase=phase,
            is_guided=guidance != 1,
            length=length,
            diffusion_steps=diffusion_steps,
        )

    model = manifest.himar
    P, N = model.num_pivots, model.num_dense
    yield graph(manifest.graph("cond"), N=2 * batch)
    rows = (1 + (config.re_cfg != 1)) * batch
    for s, step in enumerate(plan(P, model.pivot_steps, config.re_cfg, config.cfg_schedule)):
        dims = {"known": P - step.unknown, "n": step.predicted} if s else {}
        yield graph(manifest.graph("pivot", step_idx=None if s else 0), N=rows, **dims)
        yield sampling("pivot", config.re_cfg, step.predicted, config.pivot_diffusion_steps)
    rows = (1 + (config.cfg != 1)) * batch
    for k, step in enumerate(plan(N, config.num_iter, config.cfg, config.cfg_schedule)):
        dims = {"known": N - step.unknown} if k else {}
        yield graph(manifest.graph("dense", step_idx=None if k else 0), N=rows, **dims)
    yield sampling("dense", config.cfg, N, config.dense_diffusion_steps)
    for kind in ("decode", "decode_pivot"):
        yield graph(manifest.graph(kind), B=batch)
