"""Which sampling kernel is launched for which vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from runtime.backends.sampling_kernels import CudaSamplingKernels
from runtime.errors import BackendUnavailableError
from runtime.launches import KernelTable


class Launches:
    """Kernels that note which one was launched."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.table: KernelTable = {
            "small": {"function": "draw", "block": 512, "step": 1},
            "large": {"function": "draw", "block": 4096, "step": 1},
            "large_by4": {"function": "draw", "block": 4096, "step": 4},
        }

    def launch(
        self, name: str, grid: Sequence[int], stream: int, arguments: Mapping[str, int | float]
    ) -> None:
        self.names.append(name)


def draw(kernels: Launches, vocab: int) -> None:
    addresses = ("logits", "tokens", "confidences", "token_mask", "settings", "seed", "images")
    sizes = {"batch": 1, "length": 4, "scale_idx": 0, "num_scales": 10, "pass_idx": 0}
    CudaSamplingKernels(kernels, stream=0).draw(
        **dict.fromkeys(addresses, 0), **sizes, vocab=vocab, is_guided=False
    )


@pytest.mark.parametrize(
    ("vocab", "name"), [(512, "small"), (513, "large"), (4096, "large_by4"), (4095, "large")]
)
def test_the_smallest_kernel_that_reads_most_at_once(vocab: int, name: str) -> None:
    kernels = Launches()
    draw(kernels, vocab)
    assert kernels.names == [name]


def test_a_vocabulary_without_kernel() -> None:
    with pytest.raises(BackendUnavailableError, match="draw for 4097 items"):
        draw(Launches(), 4097)
