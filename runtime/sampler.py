"""The sampling rule, stated once: guidance, truncation, draw, confidence, selection.

Every backend must choose the tokens that these functions choose from the same logits.
"""

from __future__ import annotations

import numpy as np

MASK_CFG_RATIO = 1e-6  # guidance of masked passes, as a fraction of cfg


def guidance(cfg: float, scale_idx: int, num_scales: int) -> float:
    """Guidance weight t of the next-scale pass at one scale: none at the first, all at the last."""
    return cfg * scale_idx / (num_scales - 1)


def masked_guidance(cfg: float) -> float:
    """Guidance weight t of all masked passes."""
    return cfg * MASK_CFG_RATIO


def guide(raw_2BlV: np.ndarray, t: float) -> np.ndarray:
    """`(1 + t) cond - t uncond`, (B, l, V) float32, of a batch whose first half is conditional."""
    cond, uncond = np.split(raw_2BlV, 2)
    return np.float32(1 + t) * cond - np.float32(t) * uncond


def truncate(logits_BlV: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Logits with everything outside top-k, and then outside the nucleus, set to -inf.

    top_k: every logit below the k-th largest goes; equal ones stay. top_p: in ascending order
    (stable), with float32 probabilities accumulated, every entry whose mass so far is <= 1 - top_p
    goes, but never the last one.
    """
    logits = logits_BlV.copy()
    V = logits.shape[-1]
    if 0 < top_k < V:
        kth = np.partition(logits, V - top_k, axis=-1)[..., V - top_k, None]
        logits[logits < kth] = -np.inf
    if top_p > 0:
        order = np.argsort(logits, axis=-1, kind="stable")
        ascending = np.take_along_axis(logits, order, axis=-1)
        p = np.exp(ascending - ascending[..., -1:])
        p /= p.sum(axis=-1, keepdims=True)
        outside = np.cumsum(p, axis=-1, dtype=np.float32) <= 1 - top_p
        outside[..., -1] = False
        ascending[outside] = -np.inf
        np.put_along_axis(logits, order, ascending, axis=-1)
    return logits


def probabilities(logits_BlV: np.ndarray) -> np.ndarray:
    """Softmax in float64."""
    p = np.exp(logits_BlV.astype(np.float64) - logits_BlV.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def draw_inverse_cdf(p_BlV: np.ndarray, u_Bl: np.ndarray) -> np.ndarray:
    """First token whose cumulated probability exceeds u times the total, in vocabulary order."""
    cdf = np.cumsum(p_BlV, axis=-1)
    return np.argmax(cdf > u_Bl[..., None] * cdf[..., -1:], axis=-1).astype(np.int32)


def draw_argmax(p_BlV: np.ndarray) -> np.ndarray:
    """The most probable token, the first of equals."""
    return np.argmax(p_BlV, axis=-1).astype(np.int32)


def confidence(p_BlV: np.ndarray, tokens_Bl: np.ndarray) -> np.ndarray:
    """Probability of each token under the truncated distribution, (B, l) float32."""
    return np.take_along_axis(p_BlV, tokens_Bl[..., None], axis=-1)[..., 0].astype(np.float32)


def least_confident(confidence_Bn: np.ndarray, candidates_Bn: np.ndarray, count: int) -> np.ndarray:
    """The `count` least confident candidates, lowest first; equal ones in the given order."""
    order = np.argsort(confidence_Bn, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(candidates_Bn, order, axis=1)
