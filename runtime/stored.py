"""Float32 values as a graph's inputs store them; NumPy itself has no bfloat16."""

from __future__ import annotations

import numpy as np

from runtime.bundle import STORED_AS, DtypeName


def as_stored(values: np.ndarray, dtype: DtypeName) -> np.ndarray:
    """The values in a dtype of the manifest, rounded half to even; bfloat16 as its bits."""
    if dtype != "bfloat16":
        return values.astype(STORED_AS[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
