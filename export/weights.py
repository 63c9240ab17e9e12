"""The one weights file that all graphs of a bundle share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int32: ir.DataType.INT32,
}
# ONNX advises page-aligned tensors so that they can be memory-mapped; small ones would be mostly
# padding.
PAGE, LINE, LARGE = 4096, 64, 1 << 18


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the weights file.

    Attributes:
        dtype: dtype in the file.
        shape: shape in the file.
        offset: first byte.
        load: makes the tensor; called when the file is written. None for a view into another entry.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    load: Callable[[], torch.Tensor] | None

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class WeightsFile:
    """Lays tensors out in one file and writes them one at a time, so that memory holds one copy."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.entries: dict[str, Entry] = {}
        self._end = 0

    def add(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        load: Callable[[], torch.Tensor],
    ) -> None:
        """Reserves a place; `load` must return `shape`, in any dtype, when the file is written."""
        if name in self.entries:
            raise ValueError(f"weights: {name} is already there")
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        align = PAGE if nbytes >= LARGE else LINE
        offset = -(-self._end // align) * align
        self.entries[name] = Entry(dtype, tuple(shape), offset, load)
        self._end = offset + nbytes

    def view_rows(self, name: str, source: str, start: int, stop: int) -> None:
        """Names rows start..stop-1 of another tensor, without storing them twice."""
        entry = self.entries[source]
        row = entry.dtype.itemsize * torch.Size(entry.shape[1:]).numel()
        self.entries[name] = Entry(
            entry.dtype, (stop - start, *entry.shape[1:]), entry.offset + start * row, None
        )

    def initializer(self, name: str) -> ir.Value:
        """An ONNX initializer that points into the file."""
        entry = self.entries[name]
        tensor = ir.ExternalTensor(
            self.location,
            entry.offset,
            entry.nbytes,
            IR_DTYPES[entry.dtype],
            shape=ir.Shape(entry.shape),
            name=name,
        )
        return ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )

    @property
    def nbytes(self) -> int:
        return self._end

    def write(self, path: Path) -> Iterator[tuple[str, int]]:
        """Writes the file, yielding (name, bytes written so far) after every tensor.

        Raises:
            OSError: the disk is full or not writable.
        """
        with path.open("wb") as file:
            for name, entry in self.entries.items():
                if entry.load is None:
                    continue
                tensor = entry.load().detach()
                if tuple(tensor.shape) != entry.shape:
                    raise ValueError(
                        f"weights: {name} is {tuple(tensor.shape)}, declared as {entry.shape}"
                    )
                file.write(b"\0" * (entry.offset - file.tell()))
                flat = tensor.to(entry.dtype).contiguous().view(-1)
                file.write(flat.view(torch.uint8).numpy().data)
                yield name, file.tell()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
