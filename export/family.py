"""A model family as the writer sees it: what is to be built, stored and compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from export.builder import Builder
from export.certificate import Certificate
from export.config import ExportConfig
from export.engines import Runner
from export.errors import ExportError
from export.step import Step
from export.weights import WeightsFile
from runtime.bundle import (
    Family as FamilyName,
)
from runtime.bundle import (
    HiMARModelSpec,
    HiMARSamplingDefaults,
    Manifest,
    ModelSpec,
    PluginSpec,
    SamplingDefaults,
)

Progress = Callable[[str], None]
"""Called with the name of what comes next."""


class Family(ABC):
    """A model with its autoencoder, and the sampling defaults of its bundle."""

    name: ClassVar[FamilyName]
    plugins: ClassVar[tuple[PluginSpec, ...]]

    @property
    @abstractmethod
    def description(self) -> str:
        """The model in a few words."""

    @property
    @abstractmethod
    def model_spec(self) -> ModelSpec | HiMARModelSpec:
        """Sizes that the runtime needs."""

    @property
    @abstractmethod
    def sampling_defaults(self) -> SamplingDefaults | HiMARSamplingDefaults:
        """Settings that the bundle is generated with by default."""

    @abstractmethod
    def with_settings(self, file: Path | None, num_iter: int | None) -> Family:
        """The same with other defaults; arguments as in `export_bundle`.

        Raises:
            ExportError: the file is unreadable, or the settings do not fit the model.
        """

    @abstractmethod
    def with_bundle_settings(self, manifest: Manifest) -> Family:
        """The same with the defaults of a bundle of this family."""

    @abstractmethod
    def steps(self, config: ExportConfig) -> Sequence[Step]:
        """Every graph of the bundle."""

    @abstractmethod
    def lay_out(self, weights: WeightsFile, dtype: torch.dtype) -> None:
        """Reserves a place in the weights file for every tensor that the graphs use."""

    @abstractmethod
    def builder(self, weights: WeightsFile, config: ExportConfig) -> Builder:
        """What builds the graphs of `steps`, after `lay_out`."""

    @abstractmethod
    def verify(
        self, folder: Path, manifest: Manifest, weights: WeightsFile, progress: Progress
    ) -> Certificate:
        """Compares every graph with PyTorch, on ONNX Runtime's CPU provider.

        Args:
            folder: where the manifest's paths start.
            weights: as laid out for the bundle's precision.
            progress: called `verified_items` times.

        Raises:
            ParityError: something differs by more than the limits.
        """

    def verified_items(self, manifest: Manifest) -> int:
        """Calls of progress by `verify`: one for the reference, and one per graph."""
        return 1 + len(manifest.graphs)

    def measured_items(self, manifest: Manifest) -> int:
        """Calls of progress by `measure`."""
        return self.verified_items(manifest)

    @abstractmethod
    def measure(self, runner: Runner, manifest: Manifest, progress: Progress) -> Certificate:
        """Compares a backend's graphs with PyTorch, without limits.

        Args:
            progress: called `measured_items` times.

        Raises:
            BackendError: a graph cannot be run.
        """

    def of_bundle(self, manifest: Manifest, source: Path) -> Family:
        """The same with the defaults of a bundle that was exported from such a model.

        Raises:
            ExportError: the bundle is of another family or of other sizes.
        """
        if manifest.family != self.name:
            raise ExportError(
                f"{source}: a bundle of family {manifest.family!r}, the checkpoint is of "
                f"{self.name!r}; pass the files that the bundle was exported from"
            )
        family = self.with_bundle_settings(manifest)
        if family.model_spec != manifest.model:
            raise ExportError(
                f"{source}: exported from a model of other sizes: {manifest.model}, the checkpoint "
                f"is {family.model_spec}"
            )
        return family
