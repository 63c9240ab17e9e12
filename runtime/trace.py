"""Recording of a generation under the names of the golden traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# arrays of the guided batch: all conditional rows first, then all unconditional ones
HALVES = ("_raw",)
# Hi-MAR's arrays of a phase have its steps first, then the images
STEPS = ("p1.", "p2.")


class Trace:
    """Collects arrays by name; the chunks of a split batch are put together again.

    Args:
        logits: also keep `raw` and `guided` logits, which are large.
    """

    def __init__(self, *, logits: bool = False) -> None:
        self.logits = logits
        self._chunks: dict[str, list[np.ndarray]] = {}

    def __call__(self, name: str, value: np.ndarray) -> None:
        if self.logits or not name.endswith(("_raw", "_guided")):
            self._chunks.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything recorded, by name, for the whole batch."""
        return {name: _join(name, chunks) for name, chunks in self._chunks.items()}

    def save(self, path: Path) -> None:
        """Writes the arrays to an `.npz` file."""
        arrays: dict[str, Any] = self.arrays()  # Any, since NumPy's keywords include a bool
        with path.open("wb") as file:  # np.savez would add a suffix to other names
            np.savez_compressed(file, **arrays)


def _join(name: str, chunks: list[np.ndarray]) -> np.ndarray:
    if len(chunks) == 1:
        return chunks[0]
    if name.endswith(HALVES):
        halves = [np.split(chunk, 2) for chunk in chunks]
        return np.concatenate([half[i] for i in (0, 1) for half in halves])
    return np.concatenate(chunks, axis=1 if name.startswith(STEPS) else 0)
