"""Resizing of decoded pivots against PyTorch's bicubic interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.low_resolution import to_small


@pytest.mark.parametrize("side", [32, 48, 64, 128, 130])
def test_resizing_is_torchs(side: int) -> None:
    image = np.random.default_rng(side).standard_normal((2, 3, side, side)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(image), (64, 64), mode="bicubic")
    np.testing.assert_allclose(to_small(image), expected, rtol=0, atol=2e-5)
