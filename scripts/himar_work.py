"""Arithmetic and memory traffic of a Hi-MAR generation, counted as in `scripts.generation_work`."""

from __future__ import annotations

import re

from runtime.bundle import HiMARModelSpec, Manifest
from runtime.diffusion import respaced_timesteps
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_schedule import plan
from scripts.generation_work import (
    BLOCK_LINEARS,
    COND,
    DECODE,
    Step,
    Work,
    attention,
    decoding,
    linears,
)

ENCODER, DECODER, HEADS = "encoder", "decoder", {"pivot": "MLP head", "dense": "DiT head"}
DENOISERS = {"pivot": "mlp", "dense": "dit"}


def planned_steps(manifest: Manifest, sampling: HiMARSamplingConfig) -> list[Step]:
    """The steps of one generation, in order."""
    model = manifest.himar
    phases = (
        ("pivot", model.num_pivots, model.pivot_steps, sampling.re_cfg),
        ("dense", model.num_dense, sampling.num_iter, sampling.cfg),
    )
    respacings = (sampling.pivot_diffusion_steps, sampling.dense_diffusion_steps)
    steps = [Step(manifest.graph("cond"), True)]
    for (phase, length, count, cfg), respacing in zip(phases, respacings, strict=True):
        is_guided = cfg != 1
        kind = f"denoise_{phase}" + ("" if is_guided else "_unguided")
        calls = len(respaced_timesteps(respacing))
        for k, step in enumerate(plan(length, count, cfg, sampling.cfg_schedule)):
            own = phase == "pivot" or k == 0 or count == model.num_iter
            graph = manifest.graph(phase, step_idx=k if own else None)  # type: ignore[arg-type]
            known = length - step.unknown
            steps.append(Step(graph, is_guided, tokens=known))
            tokens = step.predicted if phase == "pivot" else length
            denoiser = manifest.graph(kind)  # type: ignore[arg-type]
            steps += [Step(denoiser, is_guided, tokens=tokens)] * calls
    return [*steps, Step(manifest.graph("decode"))]


def step_work(manifest: Manifest, step: Step, batch: int) -> dict[str, Work]:
    """Work of one step for so many images, by part of the model."""
    kind, model = manifest.graphs[step.graph].kind, manifest.himar
    rows = batch * (1 + step.is_guided)
    if kind == "cond":
        return {COND: Work()}
    if kind in ("pivot", "dense"):
        return _pass(manifest, kind, rows, step.tokens)
    if kind.startswith("denoise"):
        phase = kind.split("_")[1]
        return {HEADS[phase]: _denoiser(manifest, DENOISERS[phase], rows, step.tokens)}
    if kind == "decode":
        return {DECODE: decoding(manifest, batch, model.dense_side)}
    raise ValueError(f"graph {step.graph} is no step of a generation")


def _pass(manifest: Manifest, phase: str, rows: int, known: int) -> dict[str, Work]:
    """Encoder of the known tokens, decoder of all."""
    model = manifest.himar
    buffer = manifest.tensors[f"{phase}.encoder_buffer"].shape[0]
    given = known + (model.num_pivots if phase == "dense" else 0)
    lengths = {ENCODER: buffer + given, DECODER: buffer + model.num_pivots + model.num_dense}
    return {part: _blocks(manifest, model, part, rows, length) for part, length in lengths.items()}


def _blocks(manifest: Manifest, model: HiMARModelSpec, part: str, rows: int, length: int) -> Work:
    depth = model.encoder_depth if part == ENCODER else model.decoder_depth
    pattern = rf"{part}_blocks\.\d+\.({'|'.join(BLOCK_LINEARS)})"
    weight = manifest.tensors[f"{part}_blocks.0.qkv.weight"]
    return linears(manifest, pattern, rows * length) + attention(
        weight, rows, length, model.embed_dim, depth
    )


def _denoiser(manifest: Manifest, name: str, rows: int, length: int) -> Work:
    """One call; its condition is a part of the step's graph and left out."""
    block = rf"{name}\.blocks\.\d+"
    parts = "|".join(("ada", *BLOCK_LINEARS))
    pattern = rf"{name}\.(input|final|final\.ada)|{block}\.({parts})"
    work = linears(manifest, pattern, rows * length)
    projections = [
        weight
        for tensor, weight in manifest.tensors.items()
        if re.fullmatch(rf"{block}\.qkv\.weight", tensor)
    ]
    if not projections:
        return work
    weight = projections[0]
    return work + attention(weight, rows, length, weight.shape[0], len(projections))
