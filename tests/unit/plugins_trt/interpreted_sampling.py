"""Runs the sampling kernels in Triton's interpreter; prints what differs from the NumPy rule.

A process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch

from plugins_trt.sampling.kernel import draw_kernel, select_kernel
from runtime import sampler
from runtime.philox import uniforms

NUM_SCALES, SCALE_IDX = 10, 4
SEED, IMAGES = (1 << 63) + 12345, [7, (1 << 40) + 3]
# name -> cfg, top_k, top_p
SETTINGS = {
    "plain": (1.5, 0, 0.0),
    "unguided": (0.0, 20, 0.9),
    "top-k": (1.5, 20, 0.0),
    "one": (2.0, 1, 0.3),
    "all-of-the-vocabulary": (1.5, 50, 0.96),
    "top-p": (4.0, 0, 0.5),
    "nucleus-of-everything": (1.0, 30, 1.0),
    "both": (4.0, 20, 0.5),
}


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def check_draws(settings: tuple[float, int, float], pass_idx: int, has_ties: bool) -> list[str]:
    """Draws of two images of two tokens; positions where token or confidence differ."""
    cfg, top_k, top_p = settings
    rng = np.random.default_rng(pass_idx)
    B, l, V = len(IMAGES), 2, 50
    raw = rng.normal(scale=3, size=(2 * B, l, V)).astype(np.float32)
    raw = np.round(raw) if has_ties else raw
    is_masked_pass = pass_idx > 0
    t = (
        cfg * sampler.MASK_CFG_RATIO
        if is_masked_pass
        else sampler.guidance(cfg, SCALE_IDX, NUM_SCALES)
    )
    p = sampler.probabilities(sampler.truncate(sampler.guide(raw, t), top_k, top_p))
    expected = sampler.draw_inverse_cdf(p, uniforms(SEED, IMAGES, SCALE_IDX, pass_idx, l))
    confidence = sampler.confidence(p, expected)
    token_mask = np.ones((B, l), bool)
    if is_masked_pass:
        token_mask[:, 1] = False
        expected[:, 1], confidence[:, 1] = -1, -1
    tokens = torch.full((B, l), -1, dtype=torch.int32)
    confidences = torch.full((B, l), -1.0)
    draw_kernel[(l, B)](
        torch.from_numpy(raw), tokens, confidences, torch.from_numpy(token_mask),
        torch.tensor([cfg, top_k, top_p], dtype=torch.float64), torch.tensor([signed(SEED)]),
        torch.tensor([signed(i) for i in IMAGES]), B, l, V, SCALE_IDX, NUM_SCALES, pass_idx,
        is_guided=1, BLOCK_V=64, VOCAB_STEP=2 if is_masked_pass else 1,
    )  # fmt: skip
    found = []
    if not np.array_equal(tokens.numpy(), expected):
        found.append(f"tokens {tokens.tolist()}, expected {expected.tolist()}")
    if not np.allclose(confidences.numpy(), confidence, rtol=1e-6, atol=0):
        found.append(f"confidences {confidences.tolist()}, expected {confidence.tolist()}")
    return found


def check_selection(length: int, counts: list[int], has_ties: bool) -> list[str]:
    """Repeated selection among what was selected before, as the masked passes of a scale do it."""
    rng = np.random.default_rng(length)
    B, found = 3, []
    candidates = np.broadcast_to(np.arange(length), (B, length))
    given = torch.full((B, length), -1, dtype=torch.int32)
    for number, count in enumerate(counts):
        confidence = rng.random((B, length)).astype(np.float32)
        confidence = np.round(confidence * 4) / 4 if has_ties else confidence
        among = np.take_along_axis(confidence, candidates, axis=1)
        expected = sampler.least_confident(among, candidates, count)
        selected = torch.full((B, length), -1, dtype=torch.int32)
        token_mask = torch.full((B, length), number % 2 == 0)
        select_kernel[(B,)](
            torch.from_numpy(confidence), given, selected, token_mask,
            length, candidates.shape[1], count, is_first=int(number == 0),
            BLOCK_L=1 << (length - 1).bit_length(), BLOCK_C=16,
        )  # fmt: skip
        mask = np.zeros((B, length), bool)
        np.put_along_axis(mask, expected, True, axis=1)
        if not np.array_equal(selected.numpy()[:, :count], expected):
            found.append(f"pass {number}: {selected.tolist()}, expected {expected.tolist()}")
        if not np.array_equal(token_mask.numpy(), mask):
            found.append(f"pass {number}: mask {token_mask.tolist()}, expected {mask.tolist()}")
        candidates, given = expected, selected
    return found


def main() -> None:
    found = {
        f"draw-{name}-pass{pass_idx}-{'ties' if has_ties else 'distinct'}": check_draws(
            settings, pass_idx, has_ties
        )
        for name, settings in SETTINGS.items()
        for pass_idx in (0, 2)
        for has_ties in (False, True)
    }
    for has_ties in (False, True):
        for length, counts in ((4, [4, 2, 1]), (25, [20, 13, 0]), (36, [36, 36])):
            name = f"select-{length}-{'ties' if has_ties else 'distinct'}"
            found[name] = check_selection(length, counts, has_ties)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
