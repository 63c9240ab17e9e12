"""The pipeline of HMAR: images, token maps and likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.config import SamplingConfig
from runtime.draws import Draws, SeededDraws
from runtime.editing import EditConfig, given_tokens, keep_pixels
from runtime.given import GivenTokens, NothingGiven
from runtime.pipeline_base import Pipeline
from runtime.regions import blend
from runtime.trajectory import (
    Cancel,
    OnScale,
    Record,
    ScaleEvent,
    Trajectory,
    condition,
    raise_if_cancelled,
    to_uint8,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Teacher-forced log-likelihoods, natural logarithm.

    Attributes:
        patch_nums: of the model.
        ns_log_prob: of every token under the next-scale head, (B, L) float32.
        mask_log_prob: the same under the masked head, or None for a model without it.
    """

    patch_nums: tuple[int, ...]
    ns_log_prob: np.ndarray
    mask_log_prob: np.ndarray | None

    @property
    def ns_by_scale(self) -> np.ndarray:
        """Log-likelihood of every scale under the next-scale head, (B, S) float64.

        Its sum over the scales is the image's.
        """
        return self._by_scale(self.ns_log_prob)

    @property
    def mask_by_scale(self) -> np.ndarray | None:
        """The same under the masked head."""
        return None if self.mask_log_prob is None else self._by_scale(self.mask_log_prob)

    def _by_scale(self, log_prob_BL: np.ndarray) -> np.ndarray:
        starts = np.cumsum([0, *(pn * pn for pn in self.patch_nums[:-1])])
        return np.add.reduceat(log_prob_BL, starts, axis=1, dtype=np.float64)


class HMARPipeline(Pipeline[SamplingConfig, Draws]):
    """Images from a bundle of HMAR."""

    @property
    def defaults(self) -> SamplingConfig:
        """The settings that the model was published with."""
        return SamplingConfig.defaults(self.manifest)

    def generate(
        self,
        labels: Sequence[int | str],
        *,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        draws: Draws | None = None,
        on_scale: OnScale | None = None,
        cancel: Cancel = lambda: False,
        trace: Record | None = None,
        given: GivenTokens | None = None,
    ) -> np.ndarray:
        """Images of the given classes, (B, H, W, 3) uint8.

        Args:
            labels: one class per image: 0..num_classes - 1, -1 = unconditional, or a name from
                `class_names`.
            seed: 0 .. 2^64 - 1.
            image_index: names each image's random numbers, together with the seed; default
                0, 1, 2, …. An image depends on (label, seed, image_index, sampling) and on nothing
                else of the batch.
            sampling: default: the published settings.
            draws: replaces the seed, for verification.
            on_scale: called after every scale, for every part of a split batch. With it, with
                `draws`, `trace` or `given`, backends that run a whole generation at once go step
                by step.
            cancel: asked before every pass of the transformer and before decoding, such as the
                `is_set` of a `threading.Event`; True ends the generation. Where a generation runs
                at once, it is asked before every part of a split batch.
            trace: receives intermediate results, see `runtime.trace.Trace`.
            given: tokens from outside; `edit` makes them.

        Raises:
            ValueError: a label, index or setting is out of range.
            GenerationCancelled: `cancel` returned True.
            PipelineUseError: the pipeline is closed, or belongs to another process.
            DeviceMemoryError: the batch needs more memory than there is.
            BackendError: the backend fails.
        """
        self._check_usable()
        rows = self._rows(labels)
        sampling = sampling or self.defaults
        if trace is not None:
            sampling = replace(sampling, skip_guidance_below=0.0)
        schedule = sampling.checked(self.manifest.hmar)
        indices = self._indices(image_index, len(rows))
        at_once = draws is trace is on_scale is given is None and sampling.context == "scale"
        draws = draws or SeededDraws(seed, indices)
        given = given or NothingGiven(len(rows), [pn * pn for pn in self.manifest.hmar.patch_nums])
        images = []
        for part in self._parts(len(rows)):
            if at_once:
                raise_if_cancelled(cancel, part)
                done = self.runner.generate(rows[part], indices[part], seed, sampling)
                if done is not None:
                    images.append(done)
                    continue
            trajectory = Trajectory(
                self.runner,
                rows[part],
                sampling,
                schedule,
                draws.for_images(part, len(rows)),
                given.for_images(part),
                record=trace,
                on_scale=on_scale or (lambda event: None),
                cancel=cancel,
                images=part,
            )
            images.append(to_uint8(trajectory.run()))
        return np.concatenate(images)

    def encode(self, images: np.ndarray) -> list[np.ndarray]:
        """Token maps of all scales, each (B, pn*pn) int32.

        Args:
            images: (B, H, W, 3) uint8 at the model's side.

        Raises:
            ValueError: the images have another size or dtype.
            PipelineUseError: as in `generate`.
        """
        bounds = np.cumsum([pn * pn for pn in self.manifest.hmar.patch_nums])[:-1]
        return np.split(self._encoded(images), bounds, axis=1)

    def edit(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        keep: np.ndarray,
        labels: Sequence[int | str],
        *,
        edit: EditConfig | None = None,
        seed: int = 0,
        image_index: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        draws: Draws | None = None,
        on_scale: OnScale | None = None,
        cancel: Cancel = lambda: False,
        trace: Record | None = None,
    ) -> np.ndarray:
        """The images with a region generated anew, (B, H, W, 3) uint8.

        With nothing kept, the images are those of `generate`; with everything kept, the tokenizer's
        reconstructions.

        Args:
            images: (B, H, W, 3) uint8 at the model's side; or token maps of all scales, each
                (B, pn*pn), as from `encode`.
            keep: boolean, True = keep: (n, n) for all images or (B, n, n), where n is the image
                side in pixels or the last patch number.
            labels: what the region is to show, one class per image, as in `generate`.
            edit: default: keep whatever lies wholly outside the region, do not blend.
            seed, image_index, sampling, draws, on_scale, cancel: as in `generate`.
            trace: receives what it receives from `generate`, and for every scale the given tokens
                `edit_s{k}_given` and the kept ones `edit_s{k}_keep`, (B, pn*pn) boolean.
                `s{k}_tokens` are those that the passes ended with; the published method puts the
                kept ones in their place afterwards.

        Raises:
            ValueError: an image, mask, label or setting does not fit the model.
            ManifestError: the bundle is not HMAR's.
            GenerationCancelled, PipelineUseError, DeviceMemoryError, BackendError: as in
                `generate`.
        """
        self._check_usable()
        edit = edit or EditConfig()
        model = self.manifest.hmar
        sampling = sampling or self.defaults
        edit.check(model, sampling.checked(model))
        if edit.feather_px is not None and not isinstance(images, np.ndarray):
            raise ValueError("blending needs images, got token maps; set feather_px=None")
        self._rows(labels)
        pixels = keep_pixels(keep, len(labels), model)
        tokens = self._token_maps(images, len(labels))
        given = given_tokens(tokens, pixels, model.patch_nums, edit)
        if trace is not None:
            for k, (value, kept) in enumerate(zip(given.tokens, given.kept, strict=True)):
                trace(f"edit_s{k}_given", value)
                trace(f"edit_s{k}_keep", kept)
        edited = self.generate(
            labels,
            seed=seed,
            image_index=image_index,
            sampling=sampling,
            draws=draws,
            on_scale=on_scale,
            cancel=cancel,
            trace=trace,
            given=given,
        )
        if edit.feather_px is None:
            return edited
        return blend(edited, np.asarray(images), pixels, edit.feather_px)

    def score(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        labels: Sequence[int | str],
        token_mask: np.ndarray | None = None,
    ) -> Scores:
        """Log-likelihood of images under both heads, in one pass over the whole pyramid.

        Args:
            images: (B, H, W, 3) uint8 at the model's side; or token maps of all scales, each
                (B, pn*pn), as from `encode`.
            labels: one class per image, -1 = no class.
            token_mask: boolean (B, L), True where the masked head does not see the token; default:
                all tokens after scale 0.

        Raises:
            ValueError: labels, shapes or tokens are out of range.
            ManifestError: the bundle is not HMAR's.
            PipelineUseError: as in `generate`.
        """
        self._check_usable()
        rows = self._rows(labels)
        packed = np.concatenate(self._token_maps(images, len(rows)), axis=1)
        if token_mask is None:
            token_mask = np.broadcast_to(np.arange(packed.shape[1]) > 0, packed.shape)
        if token_mask.shape != packed.shape:
            raise ValueError(f"token_mask must be {packed.shape}, got {token_mask.shape}")
        graph = self.manifest.graph("score")
        inputs = {i.name for i in self.manifest.graphs[graph].inputs}
        results: dict[str, list[np.ndarray]] = {}
        for part in self._parts(len(rows)):
            feeds = {
                **condition(self.runner, rows[part]),
                "tokens": packed[part],
                "token_mask": token_mask[part],
            }
            for name, value in self.runner.run(
                graph, {n: v for n, v in feeds.items() if n in inputs}
            ).items():
                if name.endswith("log_prob"):
                    results.setdefault(name, []).append(self.runner.numpy(value))
        joined = {name: np.concatenate(parts) for name, parts in results.items()}
        return Scores(
            patch_nums=self.manifest.hmar.patch_nums,
            ns_log_prob=joined["ns_log_prob"],
            mask_log_prob=joined.get("mask_log_prob"),
        )

    def _token_maps(
        self, images: np.ndarray | Sequence[np.ndarray], batch: int
    ) -> Sequence[np.ndarray]:
        """Token maps of all scales, each (B, pn*pn) int32, from images or after checking them."""
        if isinstance(images, np.ndarray):
            if len(images) != batch:
                raise ValueError(f"there are {len(images)} images for {batch} labels")
            return self.encode(images)
        model = self.manifest.hmar
        lengths = [pn * pn for pn in model.patch_nums]
        if [t.shape for t in images] != [(batch, n) for n in lengths]:
            raise ValueError(
                f"tokens must be maps of {lengths} tokens for {batch} images, "
                f"got {[t.shape for t in images]}"
            )
        low, high = min(t.min() for t in images), max(t.max() for t in images)
        if low < 0 or high >= model.vocab_size:
            raise ValueError(f"tokens must be in 0..{model.vocab_size - 1}, got {low}..{high}")
        return [t.astype(np.int32) for t in images]


__all__ = ["HMARPipeline", "Pipeline", "ScaleEvent", "Scores"]
