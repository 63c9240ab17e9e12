"""Manifests of published models, as far as launches depend on them."""

from __future__ import annotations

import dataclasses

from export.steps import Catalogue
from hmar.config import PRESETS, HMARConfig, TokenizerConfig
from runtime.bundle import GraphSpec, Manifest, WeightSpec
from tests.unit.runtime.manifests import manifest, model_spec


def published(name: str) -> Manifest:
    """What the bundle of a preset says, as far as these launches depend on it."""
    config = PRESETS[name]
    assert isinstance(config, HMARConfig)
    graphs = {
        step.name: GraphSpec(
            kind=step.kind, scale_idx=step.scale_idx, inputs=step.inputs, outputs=step.outputs,
            file=f"graphs/{step.name}.onnx", sha256="0" * 64, nbytes=1,
        )
        for step in Catalogue(config, TokenizerConfig(), "fp16").steps()
    }  # fmt: skip
    model = model_spec(
        embed_dim=config.embed_dim, latent_channels=config.latent_channels,
        patch_nums=config.patch_nums, shared_aln=config.shared_aln,
    )  # fmt: skip
    tensors = {f"phi.{j}.weight": WeightSpec("float32", (32, 32, 3, 3), 0) for j in range(4)}
    return dataclasses.replace(
        manifest(), precision="fp16", model=model, graphs=graphs, tensors=tensors
    )
