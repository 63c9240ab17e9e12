"""Values in the dtypes of a bundle."""

from __future__ import annotations

import numpy as np
import torch

from runtime.stored import as_stored


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    values = np.concatenate((values, values * 1e-30, [1.00390625, 1.01171875, -0.0, 1e38]))
    expected = torch.from_numpy(values.astype(np.float32)).bfloat16().view(torch.uint16)
    np.testing.assert_array_equal(as_stored(values, "bfloat16"), expected)


def test_other_dtypes_are_numpys() -> None:
    values = np.array([1.5, 70_000.0])
    assert as_stored(values, "float32").dtype == np.float32
    assert as_stored(values[:1], "float16").dtype == np.float16
