"""Settings of one export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Settings of one export.

    Attributes:
        precision: dtype of weights and activations. HMAR's logits, softmax statistics, norms and
            `f_hat`, Hi-MAR's tokens and predicted noise, and the encoders of images are float32
            in every precision.
        verify: compare every graph with PyTorch and write the parity certificate.
    """

    precision: Precision = "fp32"
    verify: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")

    @property
    def opset(self) -> int:
        """ONNX opset of the graphs: 20 is the first with Gelu, 22 with bfloat16 convolutions."""
        return 22 if self.precision == "bf16" else 20

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]
