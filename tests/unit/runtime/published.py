"""Manifests of published models, as far as launches depend on them."""

from __future__ import annotations

import dataclasses

import torch

from export.himar.steps import Catalogue as HiMARCatalogue
from export.himar.tensors import lay_out
from export.steps import Catalogue
from export.weights import WeightsFile
from hmar.config import HIMAR_PRESETS, PRESETS, HMARConfig, KLVAEConfig, TokenizerConfig
from hmar.himar import HiMAR
from hmar.kl_vae import KLVAE
from runtime.bundle import GraphSpec, Manifest, WeightSpec
from tests.unit.runtime.manifests import himar_manifest, manifest, model_spec


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


def published_himar(name: str, precision: str = "fp16") -> Manifest:
    """The graphs and tensors of a preset of Hi-MAR as they are exported, for 4 dense steps."""
    config = HIMAR_PRESETS[name]
    small = himar_manifest()
    graphs = {
        step.name: GraphSpec(
            kind=step.kind, step_idx=step.step_idx, inputs=step.inputs, outputs=step.outputs,
            file=f"graphs/{step.name}.onnx", sha256="0" * 64, nbytes=1,
        )
        for step in HiMARCatalogue(config, KLVAEConfig(), precision, 4).steps()
    }  # fmt: skip
    weights, dtype = WeightsFile("weights.bin"), {"fp16": torch.float16, "fp32": torch.float32}
    with torch.device("meta"):
        lay_out(weights, HiMAR(config), KLVAE(KLVAEConfig()), dtype[precision])
    tensors = {
        tensor: WeightSpec(str(entry.dtype).removeprefix("torch."), tuple(entry.shape), 0)
        for tensor, entry in weights.entries.items()
    }
    model = dataclasses.replace(
        small.himar, preset=name, embed_dim=config.embed_dim, token_channels=config.token_channels,
        encoder_depth=config.encoder_depth, decoder_depth=config.decoder_depth,
        pivot_side=config.pivot_side, dense_side=config.dense_side, num_iter=4,
    )  # fmt: skip
    return dataclasses.replace(
        small, precision=precision, model=model, graphs=graphs, tensors=tensors
    )
