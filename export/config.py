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
        precision: dtype of weights and activations. Logits, softmax statistics, norms, `f_hat` and the
            tokenizer's encoder are float32 in every precision.
        opset: ONNX opset of the graphs.
        verify: compare every graph with PyTorch and write the parity certificate.
    """

    precision: Precision = "fp32"
    opset: int = 20
    verify: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.opset < 20:
            raise ValueError(f"opset must be at least 20, got {self.opset}")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]
