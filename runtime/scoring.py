"""Which class explains an image: zero-shot classification by the likelihood of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.pipeline import HMARPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Images under several classes, N images and K classes.

    Attributes:
        labels: the classes.
        log_likelihood: of every scale's tokens under the next-scale head, (N, K, S) float64,
            natural logarithm.
    """

    labels: Sequence[int | str]
    log_likelihood: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        """Log-likelihoods of whole images, (N, K)."""
        return self.log_likelihood.sum(axis=2)

    @property
    def posterior(self) -> np.ndarray:
        """Probabilities (N, K) of the classes, if all are as likely before the image is seen."""
        p = np.exp(self.totals - self.totals.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    @property
    def order(self) -> np.ndarray:
        """Positions in `labels`, (N, K), the class that explains the image best first."""
        return np.argsort(-self.totals, axis=1, kind="stable")


def rank(
    pipeline: HMARPipeline,
    images: np.ndarray,
    labels: Sequence[int | str],
    on_image: Callable[[int], None] = lambda done: None,
) -> Ranking:
    """Scores every image under every class; each image is encoded once.

    Args:
        images: (N, H, W, 3) uint8 at the model's side.
        labels: classes as in `HMARPipeline.generate`.
        on_image: called with the number of images that are done.

    Raises:
        ValueError: as `HMARPipeline.encode` and `HMARPipeline.score`.
    """
    tokens = pipeline.encode(images)
    likelihoods = []
    for i in range(len(images)):
        repeated = [np.repeat(t[i : i + 1], len(labels), axis=0) for t in tokens]
        likelihoods.append(pipeline.score(repeated, labels).ns_by_scale)
        on_image(i + 1)
    return Ranking(labels=tuple(labels), log_likelihood=np.stack(likelihoods))
