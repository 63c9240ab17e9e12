"""The pipeline of Hi-MAR: tokens of both grids, and images of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from runtime.backends.base import StepRunner
from runtime.errors import BundleError
from runtime.himar_config import HiMARSamplingConfig
from runtime.himar_draws import HiMARDraws, SeededHiMARDraws
from runtime.himar_trajectory import HiMARTrajectory, OnStep, StepEvent, decode, decode_small
from runtime.pipeline_base import NO_CLASS, Pipeline
from runtime.stored import as_stored
from runtime.trajectory import Cancel, Record, condition, to_uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class HiMARTokens:
    """The tokens of both grids, row by row, float32.

    Attributes:
        pivots: of the low resolution, (B, P, C).
        dense: of the images, (B, N, C).
    """

    pivots: np.ndarray
    dense: np.ndarray


class HiMARPipeline(Pipeline[HiMARSamplingConfig, HiMARDraws]):
    """Images from a bundle of Hi-MAR."""

    @property
    def defaults(self) -> HiMARSamplingConfig:
        return HiMARSamplingConfig.defaults(self.manifest)

    def generate(
        self,
        labels: Sequence[int | str] | None = None,
        *,
        cond: np.ndarray | None = None,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: HiMARSamplingConfig | None = None,
        draws: HiMARDraws | None = None,
        on_step: OnStep = lambda event: None,
        cancel: Cancel = lambda: False,
        trace: Record | None = None,
    ) -> np.ndarray:
        """Images of the given classes or vectors, (B, H, W, 3) uint8; see `generate_tokens`."""
        tokens = self.generate_tokens(
            labels,
            cond=cond,
            seed=seed,
            image_index=image_index,
            sampling=sampling,
            draws=draws,
            on_step=on_step,
            cancel=cancel,
            trace=trace,
        )
        image = self._decoded(decode, tokens.dense)
        if trace is not None:
            # black to white is -1 to 1 in the golden traces
            trace("image", 2 * image - 1)
            trace("small_image_64", 2 * self._decoded(decode_small, tokens.pivots) - 1)
        return to_uint8(image)

    def generate_tokens(
        self,
        labels: Sequence[int | str] | None = None,
        *,
        cond: np.ndarray | None = None,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: HiMARSamplingConfig | None = None,
        draws: HiMARDraws | None = None,
        on_step: OnStep = lambda event: None,
        cancel: Cancel = lambda: False,
        trace: Record | None = None,
    ) -> HiMARTokens:
        """Tokens of images of the given classes or vectors.

        Args:
            labels: one class per image: 0..num_classes - 1, -1 = unconditional, or a name from
                `class_names`.
            cond: instead of labels, one vector per image, (B, embed_dim): what a text encoder says,
                for a model that was trained with it.
            seed: 0 .. 2^64 - 1.
            image_index: names each image's random numbers, together with the seed; default
                0, 1, 2, …. An image depends on (condition, seed, image_index, sampling) and on
                nothing else of the batch.
            sampling: default: the published settings.
            draws: replaces the seed, for verification.
            on_step: called after every step of both phases, for every part of a split batch.
            cancel: asked before every call of a graph, such as the `is_set` of a `threading.Event`;
                True ends the generation. Where the denoising of a step runs at once, it is asked
                between steps.
            trace: receives masks, tokens and images, see `runtime.trace.Trace`.

        Raises:
            ValueError: a label, vector, index or setting is out of range.
            GenerationCancelled: `cancel` returned True.
            PipelineUseError: the pipeline is closed, or belongs to another process.
            DeviceMemoryError: the batch needs more memory than there is.
            BackendError: the backend fails.
        """
        self._check_usable()
        if (labels is None) == (cond is None):
            raise ValueError("give either labels or cond")
        given = self._vectors(cond) if labels is None else self._classes(labels)
        total = len(given)
        indices = self._indices(image_index, total)
        draws = draws or SeededHiMARDraws(seed, indices)
        parts = [
            HiMARTrajectory(
                self.runner,
                self._conditions(given[part]),
                sampling or self.defaults,
                draws.for_images(part, total),
                record=trace,
                on_step=on_step,
                cancel=cancel,
                images=part,
            ).run()
            for part in self._parts(total)
        ]
        pivots, dense = (np.concatenate(tokens) for tokens in zip(*parts, strict=True))
        return HiMARTokens(pivots=pivots, dense=dense)

    def decode(self, dense: np.ndarray) -> np.ndarray:
        """Images (B, H, W, 3) uint8 of dense tokens (B, N, C), as from `encode`."""
        return to_uint8(self._decoded(decode, dense))

    def decode_small(self, pivots: np.ndarray) -> np.ndarray:
        """Low-resolution images (B, 64, 64, 3) uint8 of pivots (B, P, C)."""
        return to_uint8(self._decoded(decode_small, pivots))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Dense tokens (B, N, C) float32 of images: the mean of what the autoencoder says.

        Args:
            images: (B, H, W, 3) uint8 at the model's side.

        Raises:
            ValueError: the images have another size or dtype.
            PipelineUseError: as in `generate_tokens`.
        """
        return self._encoded(images)

    def score(self, *_: object, **__: object) -> NoReturn:
        """Raises BundleError: diffusion gives tokens no likelihood."""
        raise BundleError(
            "score needs a bundle of HMAR; this one is of Hi-MAR, whose tokens have no likelihoods"
        )

    def edit(self, *_: object, **__: object) -> NoReturn:
        """Raises BundleError: Hi-MAR cannot edit yet."""
        raise BundleError(
            "edit needs a bundle of HMAR; this one is of Hi-MAR, which has no editing yet"
        )

    def _classes(self, labels: Sequence[int | str]) -> list[int]:
        has_classes = self.manifest.himar.num_classes > 0
        if not has_classes and any(label != NO_CLASS for label in labels):
            raise ValueError(
                "this bundle has no classes: give cond, one vector per image, or -1 for none"
            )
        return self._rows(labels)

    def _vectors(self, cond: np.ndarray | None) -> np.ndarray:
        width = self.manifest.himar.embed_dim
        cond = np.asarray(cond, np.float32)
        if cond.ndim != 2 or cond.shape[1] != width or len(cond) == 0:
            raise ValueError(
                f"cond must be one vector of {width} numbers per image, (B, {width}), "
                f"got {cond.shape}"
            )
        if not np.isfinite(cond).all():
            raise ValueError("cond has values that are not finite")
        return cond

    def _conditions(self, given: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows (2B, D) of the guided batch, from classes or vectors."""
        B, none = len(given), self.manifest.himar.num_classes
        if not isinstance(given, np.ndarray):
            return self._cond_rows([*given, *[none] * B])
        (output,) = self.manifest.graphs[self.manifest.graph("cond")].outputs
        unconditional = self._cond_rows([none] * 2 * B)[B:]
        return np.concatenate((as_stored(given, output.dtype), unconditional))

    def _cond_rows(self, labels: Sequence[int]) -> np.ndarray:
        return self.runner.numpy(condition(self.runner, labels)["cond"])

    def _decoded(
        self, decoder: Callable[[StepRunner, np.ndarray], np.ndarray], tokens: np.ndarray
    ) -> np.ndarray:
        self._check_usable()
        parts = [decoder(self.runner, tokens[part]) for part in self._parts(len(tokens))]
        return np.concatenate(parts)


__all__ = ["HiMARPipeline", "HiMARTokens", "StepEvent"]
