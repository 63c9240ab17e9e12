"""Comparison of a generation with a golden trace: tokens and mask sets equal, numbers close."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.golden_data import assert_close

EQUAL = ("drawn", "tokens")
CLOSE = {
    "raw": 2e-5,
    "guided": 6e-5,
    "f_hat": 1e-6,
    "next": 1e-6,
    "f_hat_in": 1e-6,
    "h_in": 1e-6,
    "conf": 2e-5,
}
"""Largest absolute errors, from tests/golden/hmar/README.md.

Guidance adds up three logits' errors.
"""


def compare_trace(
    golden: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], slack: float = 1.0
) -> None:
    """Fails at the first array, in order of generation, that differs from the golden trace.

    Every array of the golden trace that `ours` has is compared; tokens and images must be there.
    `slack` widens the limits on numbers, for maps of a larger range than the tiny case's.
    """
    compared = set()
    for name, ref in golden.items():
        if name not in ours:
            continue
        compared.add(name)
        out = ours[name]
        kind = name.split("_", 2)[-1] if "_ns_" in name or "_m" in name else name.split("_", 1)[-1]
        if kind in EQUAL:
            np.testing.assert_array_equal(out, ref, err_msg=name)
        elif kind == "idx_to_mask":
            np.testing.assert_array_equal(np.sort(out, axis=1), np.sort(ref, axis=1), err_msg=name)
        elif kind == "kept":
            assert np.abs(out.astype(int) - ref).max() <= 1, name
        elif name == "image":
            assert_close(name, ref, out, rms_ratio=1e-5, max_abs=slack * 5e-5)
        elif kind == "conf":
            # confidences go with idx_to_mask: equal sets may be listed in another order
            assert_close(
                name,
                np.sort(ref, axis=1),
                np.sort(out, axis=1),
                rms_ratio=1e-4,
                max_abs=slack * CLOSE[kind],
            )
        else:
            assert_close(name, ref, out, rms_ratio=1e-4, max_abs=slack * CLOSE[kind])
    needed = {n for n in golden if n.endswith(("_drawn", "_tokens", "_idx_to_mask", "_f_hat"))} | {
        "image"
    } & set(golden)
    assert needed <= compared, f"not compared: {sorted(needed - compared)}"
