"""The pipeline of HMAR: images, token maps and likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.config import SamplingConfig
from runtime.draws import Draws, SeededDraws
from runtime.pipeline_base import Pipeline
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
        ns_log_prob: of every token under the next-scale head, (B, L) float32.
        mask_log_prob: the same under the masked head, or None for a model without it.
    """

    ns_log_prob: np.ndarray
    mask_log_prob: np.ndarray | None


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
                `draws` or with `trace`, backends that run a whole generation at once go step by
                step.
            cancel: asked before every pass of the transformer and before decoding, such as the
                `is_set` of a `threading.Event`; True ends the generation. Where a generation runs
                at once, it is asked before every part of a split batch.
            trace: receives intermediate results, see `runtime.trace.Trace`.

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
        at_once = draws is trace is on_scale is None and sampling.context == "scale"
        draws = draws or SeededDraws(seed, indices)
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

    def score(
        self,
        labels: Sequence[int | str],
        tokens: Sequence[np.ndarray],
        token_mask: np.ndarray | None = None,
    ) -> Scores:
        """Log-likelihood of given tokens under both heads, in one pass over the whole pyramid.

        Args:
            labels: one class per image, -1 = no class.
            tokens: token maps of all scales, each (B, pn*pn), as from `encode`.
            token_mask: boolean (B, L), True where the masked head does not see the token; default:
                all tokens after scale 0.

        Raises:
            ValueError: labels, shapes or tokens are out of range.
            PipelineUseError: as in `generate`.
        """
        self._check_usable()
        model, rows = self.manifest.hmar, self._rows(labels)
        lengths = [pn * pn for pn in model.patch_nums]
        if [t.shape for t in tokens] != [(len(rows), n) for n in lengths]:
            raise ValueError(
                f"tokens must be maps of {lengths} tokens for {len(rows)} images, "
                f"got {[t.shape for t in tokens]}"
            )
        packed = np.concatenate(tokens, axis=1).astype(np.int32)
        if packed.min() < 0 or packed.max() >= model.vocab_size:
            raise ValueError(
                f"tokens must be in 0..{model.vocab_size - 1}, got {packed.min()}..{packed.max()}"
            )
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
        return Scores(ns_log_prob=joined["ns_log_prob"], mask_log_prob=joined.get("mask_log_prob"))


__all__ = ["HMARPipeline", "Pipeline", "ScaleEvent", "Scores"]
