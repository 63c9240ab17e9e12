"""The scale loop of HMAR: which graph runs when, and what goes into it. Knows no backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from runtime import sampler
from runtime.backends.base import StepRunner
from runtime.config import SamplingConfig
from runtime.draws import Draws
from runtime.errors import GenerationCancelled
from runtime.given import GivenTokens
from runtime.schedule import Schedule, masked_counts

logger = logging.getLogger(__name__)

Record = Callable[[str, np.ndarray], None]
Cancel = Callable[[], bool]
"""Says whether the generation is to end now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleEvent:
    """What a per-scale callback receives.

    Attributes:
        scale_idx, pn: the scale just finished, and its side in tokens.
        num_scales: of the model.
        images: positions of these images in the request.
        tokens: final tokens of this scale, (B, pn*pn) int32.
        preview: decodes the reconstruction so far to uint8 images (B, H, W, 3); takes time only if
            called.
    """

    scale_idx: int
    pn: int
    num_scales: int
    images: slice
    tokens: np.ndarray
    preview: Callable[[], np.ndarray]


OnScale = Callable[[ScaleEvent], None]


def to_uint8(image_B3HW: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8 (B, H, W, 3); what is no number is black, and logged."""
    if not np.isfinite(image_B3HW).all():
        logger.warning(
            "pictures hold values that are no numbers: the weights or settings exceed the range of "
            "the bundle's precision; export it with --precision fp32 or bf16"
        )
        image_B3HW = np.nan_to_num(image_B3HW, nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(image_B3HW.transpose(0, 2, 3, 1) * 255).clip(0, 255).astype(np.uint8)


def decode(runner: StepRunner, f_hat: Any) -> np.ndarray:
    """Images (B, 3, H, W) float32 in [0, 1]."""
    return runner.numpy(runner.run(runner.manifest.graph("decode"), {"f_hat": f_hat})["image"])


def condition(runner: StepRunner, labels: Sequence[int]) -> dict[str, Any]:
    """Outputs of the `cond` graph for labels in 0..num_classes."""
    return runner.run(runner.manifest.graph("cond"), {"label": np.asarray(labels, np.int32)})


def raise_if_cancelled(cancel: Cancel, images: slice) -> None:
    """Raises GenerationCancelled if the caller wants no more of the part `images`."""
    if cancel():
        raise GenerationCancelled(
            f"generation cancelled before images {images.start} to {images.stop - 1} were done; "
            "nothing is returned, the pipeline can be used again"
        )


class Trajectory:
    """One generation of a batch that fits the backend.

    Args:
        labels: classes 0..num_classes - 1, or num_classes = no class.
        schedule: checked mask schedule, or None.
        given: tokens from outside.
        images: positions of these images in the request, for callbacks.
    """

    def __init__(
        self,
        runner: StepRunner,
        labels: Sequence[int],
        config: SamplingConfig,
        schedule: Schedule | None,
        draws: Draws,
        given: GivenTokens,
        *,
        record: Record | None,
        on_scale: OnScale,
        cancel: Cancel,
        images: slice,
    ) -> None:
        self.runner, self.config, self.schedule, self.draws = runner, config, schedule, draws
        self.given = given
        self.recorder, self.on_scale, self.images = record, on_scale, images
        self.cancel = cancel
        self.model = runner.manifest.hmar
        self.batch = len(labels)
        none = self.model.num_classes
        self.labels = {1: [*labels], 2: [*labels, *([none] * self.batch)]}
        self.cond: dict[int, dict[str, Any]] = {}
        self.maps: list[np.ndarray] = []  # next-scale inputs so far, each (B, l, Cvae)

    def run(self) -> np.ndarray:
        """Images (B, 3, H, W) float32 in [0, 1]."""
        P, S = self.model.patch_nums[-1], len(self.model.patch_nums)
        f_hat: Any = np.zeros((self.batch, self.model.latent_channels, P, P), np.float32)
        for k, pn in enumerate(self.model.patch_nums):
            predicted = self._predict(k, pn)
            tokens = self.given.committed(k, predicted)
            feeds = {"tokens": tokens.reshape(-1, pn, pn), "f_hat": f_hat}
            results = self.runner.run(self.runner.manifest.graph("quant", k), feeds)
            f_hat = results["f_hat_out"]
            if k + 1 < S:
                self.maps.append(self.runner.numpy(results["map"]))
            self.record(f"s{k}_tokens", predicted)
            self.record(f"s{k}_f_hat", f_hat)
            self.on_scale(
                ScaleEvent(
                    scale_idx=k,
                    pn=pn,
                    num_scales=S,
                    images=self.images,
                    tokens=tokens,
                    preview=partial(self._preview, f_hat),
                )
            )
        raise_if_cancelled(self.cancel, self.images)
        image = decode(self.runner, f_hat)
        self.record("image", image)
        return image

    def record(self, name: str, value: Any) -> None:
        """Hands a value on where someone records; only then is it copied from the device."""
        if self.recorder is not None:
            self.recorder(name, self.runner.numpy(value))

    def _preview(self, f_hat: Any) -> np.ndarray:
        return to_uint8(decode(self.runner, f_hat))

    def _predict(self, k: int, pn: int) -> np.ndarray:
        """Tokens (B, pn*pn) of one scale: the next-scale pass, then its masked passes."""
        is_open = self.given.is_open(k)
        if not is_open.any() and self.recorder is None:  # a trace has every pass
            return self.given.drawn(k, np.zeros(is_open.shape, np.int32))
        t = sampler.guidance(self.config.cfg, k, len(self.model.patch_nums))
        drawn, p = self._draw(k, 0, self._ns_logits(k, self._is_guided(t)), t)
        tokens = self.given.drawn(k, drawn)
        self.record(f"s{k}_ns_tokens", tokens)
        counts = masked_counts(() if self.schedule is None else self.schedule[k], pn * pn)
        for n in range(self.given.rounds if counts else 0):
            tokens, p = self._predict_again(k, pn, tokens, p, is_open, n * len(counts), counts)
        return tokens

    def _predict_again(
        self,
        k: int,
        pn: int,
        tokens: np.ndarray,
        p: np.ndarray,
        is_open: np.ndarray,
        done: int,
        counts: Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, pn*pn) after a round of masked passes, and the last pass's distribution.

        Args:
            p: distribution that says how confident the present tokens are.
            is_open: True for tokens that may change.
            done: masked passes of this scale so far.
            counts: tokens that each pass predicts where all are open; elsewhere, the same share of
                the open ones, rounded up.
        """
        t = sampler.masked_guidance(self.config.cfg)
        num_open_B = is_open.sum(axis=1)
        idx = np.broadcast_to(np.arange(pn * pn), tokens.shape)
        for j, count in enumerate(counts, start=done + 1):
            conf = np.where(is_open, sampler.confidence(p, tokens), np.float32(np.inf))
            conf = np.take_along_axis(conf, idx, axis=1)
            self.record(f"s{k}_ns_conf" if j == 1 else f"s{k}_m{j - 1}_conf", conf)
            idx = sampler.least_confident(conf, idx, count)
            is_masked = np.arange(count) < -(-count * num_open_B // (pn * pn))[:, None]
            is_open = np.zeros(tokens.shape, np.bool_)
            np.put_along_axis(is_open, idx, is_masked, axis=1)
            logits = self._mask_logits(k, pn, tokens, is_open, self._is_guided(t))
            drawn, p = self._draw(k, j, logits, t)
            tokens = np.where(is_open, drawn, tokens)
            self.record(f"s{k}_m{j}_tokens", tokens)
            self.record(f"s{k}_m{j}_idx_to_mask", np.where(is_masked, idx, -1).astype(np.int32))
        return tokens, p

    def _is_guided(self, t: float) -> bool:
        return t >= self.config.skip_guidance_below

    def _draw(
        self, k: int, pass_idx: int, raw_NlV: np.ndarray, t: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of one pass, and the truncated distribution that they come from."""
        guided = sampler.guide(raw_NlV, t) if self._is_guided(t) else raw_NlV
        p = sampler.probabilities(sampler.truncate(guided, self.config.top_k, self.config.top_p))
        tokens = self.draws(k, pass_idx, p)
        name = f"s{k}_ns" if pass_idx == 0 else f"s{k}_m{pass_idx}"
        self.record(f"{name}_raw", raw_NlV)
        self.record(f"{name}_guided", guided)
        self.record(f"{name}_drawn", tokens)
        return tokens, p

    def _ns_logits(self, k: int, is_guided: bool) -> np.ndarray:
        halves = 1 + is_guided
        if self.config.context == "prefix" and k > 0:
            lengths = [pn * pn for pn in self.model.patch_nums[: k + 1]]
            cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
            maps = _repeated(np.concatenate(self.maps, axis=1), halves)
            feeds = {"map": maps, "cu_seqlens": cu_seqlens}
            return self._logits("ns_prefix", None, feeds, halves)[:, -lengths[-1] :]
        feeds = {} if k == 0 else {"map": _repeated(self.maps[-1], halves)}
        return self._logits("ns", k, feeds, halves)

    def _mask_logits(
        self, k: int, pn: int, tokens: np.ndarray, token_mask: np.ndarray, is_guided: bool
    ) -> np.ndarray:
        halves = 1 + is_guided
        graph = self.runner.manifest.graph("mask_input", k)
        h = self.runner.numpy(self.runner.run(graph, {"tokens": tokens.reshape(-1, pn, pn)})["h"])
        operands = {"map": self.maps[-1], "h": h, "token_mask": token_mask}
        feeds = {name: _repeated(value, halves) for name, value in operands.items()}
        return self._logits("mask", k, feeds, halves)

    def _logits(self, kind: Any, k: int | None, feeds: dict[str, Any], halves: int) -> np.ndarray:
        raise_if_cancelled(self.cancel, self.images)
        if halves not in self.cond:
            self.cond[halves] = condition(self.runner, self.labels[halves])
        cond = self.cond[halves]
        graph = self.runner.manifest.graph(kind, k)
        inputs = self.runner.manifest.graphs[graph].inputs
        conditions = {i.name: cond[i.name] for i in inputs if i.name in cond}
        return self.runner.numpy(self.runner.run(graph, {**feeds, **conditions})["logits"])


def _repeated(value: np.ndarray, halves: int) -> np.ndarray:
    """The same input for each half of the guided batch."""
    return np.concatenate((value,) * halves)
