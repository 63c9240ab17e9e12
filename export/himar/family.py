"""Hi-MAR as the writer sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from export.config import ExportConfig
from export.engines import Runner
from export.family import Family, Progress
from export.himar.graphs import GraphBuilder
from export.himar.metadata import model_spec, sampling_defaults
from export.himar.pieces import pieces_for
from export.himar.steps import Catalogue, StepSpec
from export.himar.tensors import lay_out
from export.himar.verify import GenerationCertificate, measure, verify
from export.weights import WeightsFile
from hmar.himar import HiMAR
from hmar.kl_vae import KLVAE
from runtime.bundle import Family as FamilyName
from runtime.bundle import HiMARModelSpec, HiMARSamplingDefaults, Manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HiMARFamily(Family):
    """Hi-MAR with its autoencoder."""

    name: ClassVar[FamilyName] = "himar"
    plugins: ClassVar = ()

    model: HiMAR
    vae: KLVAE
    sampling_defaults: HiMARSamplingDefaults

    @classmethod
    def of(cls, model: HiMAR, vae: KLVAE) -> HiMARFamily:
        """A pair with the published defaults."""
        defaults = sampling_defaults(model.config, None, None)
        return cls(model=model, vae=vae, sampling_defaults=defaults)

    @property
    def description(self) -> str:
        spec = self.model_spec
        name = spec.preset or (
            f"Hi-MAR depth {spec.encoder_depth}+{spec.decoder_depth}, width {spec.embed_dim}"
        )
        classes = f"{spec.num_classes} classes" if spec.num_classes else "condition vectors"
        return f"{name}, {spec.image_side_px} px, {classes}, {spec.num_iter} dense steps"

    @property
    def model_spec(self) -> HiMARModelSpec:
        return model_spec(self.model, self.vae, self.sampling_defaults.num_iter)

    def with_settings(self, file: Path | None, num_iter: int | None) -> HiMARFamily:
        defaults = sampling_defaults(self.model.config, file, num_iter)
        return replace(self, sampling_defaults=defaults)

    def with_bundle_settings(self, manifest: Manifest) -> HiMARFamily:
        assert isinstance(manifest.sampling, HiMARSamplingDefaults)  # the bundle is of this family
        return replace(self, sampling_defaults=manifest.sampling)

    def steps(self, config: ExportConfig) -> list[StepSpec]:
        num_iter = self.sampling_defaults.num_iter
        return Catalogue(self.model.config, self.vae.config, config.precision, num_iter).steps()

    def lay_out(self, weights: WeightsFile, dtype: torch.dtype) -> None:
        lay_out(weights, self.model, self.vae, dtype)

    def builder(self, weights: WeightsFile, config: ExportConfig) -> GraphBuilder:
        # no piece depends on the number of classes, so that models of any number share them
        sizes = replace(self.model.config, num_classes=0)
        pieces = pieces_for(sizes, self.vae.config, config.dtype, config.opset)
        return GraphBuilder(pieces, weights)

    def verified_items(self, manifest: Manifest) -> int:
        """Calls of progress by `verify`: also one for the generation by graphs."""
        return 2 + len(manifest.graphs)

    def verify(
        self, folder: Path, manifest: Manifest, weights: WeightsFile, progress: Progress
    ) -> GenerationCertificate:
        return verify(folder, manifest, self.model, self.vae, progress)

    def measure(
        self, runner: Runner, manifest: Manifest, progress: Progress
    ) -> GenerationCertificate:
        return measure(runner, manifest, self.model, self.vae, progress)
