"""HMAR as the writer sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from export.config import ExportConfig
from export.engines import Runner
from export.errors import ExportError
from export.family import Family, Progress
from export.graphs import GraphBuilder
from export.metadata import model_spec, sampling_defaults
from export.pieces import pieces_for
from export.steps import Catalogue, StepSpec
from export.tensors import lay_out
from export.torch_steps import TorchSteps
from export.verify import TokenCertificate, verify
from export.verify_backend import KINDS, verify_backend
from export.weights import WeightsFile
from hmar.hmar import HMAR
from hmar.vae import VQVAE
from plugins_trt.block_sparse_attn.spec import OP_DOMAIN, OP_NAME, PLUGIN_VERSION
from runtime.bundle import Family as FamilyName
from runtime.bundle import Manifest, ModelSpec, PluginSpec, SamplingDefaults


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HMARFamily(Family):
    """HMAR with its tokenizer."""

    name: ClassVar[FamilyName] = "hmar"
    plugins: ClassVar = (PluginSpec(domain=OP_DOMAIN, name=OP_NAME, version=PLUGIN_VERSION),)

    model: HMAR
    tokenizer: VQVAE
    sampling_defaults: SamplingDefaults

    @classmethod
    def of(cls, model: HMAR, tokenizer: VQVAE) -> HMARFamily:
        """A pair with the published defaults."""
        defaults = sampling_defaults(model.config, None)
        return cls(model=model, tokenizer=tokenizer, sampling_defaults=defaults)

    @property
    def description(self) -> str:
        spec = self.model_spec
        name = spec.preset or f"HMAR depth {spec.depth}, width {spec.embed_dim}"
        return f"{name}, {spec.image_side_px} px, {spec.num_classes} classes"

    @property
    def model_spec(self) -> ModelSpec:
        return model_spec(self.model, self.tokenizer)

    def with_settings(self, file: Path | None, num_iter: int | None) -> HMARFamily:
        if num_iter is not None:
            raise ExportError(
                "num_iter is a setting of Hi-MAR and the checkpoint is of HMAR, whose steps are "
                "its scales; leave it out"
            )
        return replace(self, sampling_defaults=sampling_defaults(self.model.config, file))

    def with_bundle_settings(self, manifest: Manifest) -> HMARFamily:
        assert isinstance(manifest.sampling, SamplingDefaults)  # the bundle is of this family
        return replace(self, sampling_defaults=manifest.sampling)

    def steps(self, config: ExportConfig) -> list[StepSpec]:
        return Catalogue(self.model.config, self.tokenizer.config, config.precision).steps()

    def lay_out(self, weights: WeightsFile, dtype: torch.dtype) -> None:
        lay_out(weights, self.model, self.tokenizer, dtype)

    def builder(self, weights: WeightsFile, config: ExportConfig) -> GraphBuilder:
        sizes = self.model.config
        pieces = pieces_for(sizes, self.tokenizer.config, config.dtype, config.opset)
        return GraphBuilder(sizes, pieces, weights, config.opset)

    def verify(
        self, folder: Path, manifest: Manifest, weights: WeightsFile, progress: Progress
    ) -> TokenCertificate:
        steps = TorchSteps(self.model.config, weights)
        return verify(folder, manifest, self.model, self.tokenizer, steps, progress)

    def measured_items(self, manifest: Manifest) -> int:
        return 1 + sum(graph.kind in KINDS for graph in manifest.graphs.values())

    def measure(self, runner: Runner, manifest: Manifest, progress: Progress) -> TokenCertificate:
        return verify_backend(runner, manifest, self.model, self.tokenizer, progress)
