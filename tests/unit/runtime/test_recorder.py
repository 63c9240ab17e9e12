"""What the recording device notes, and where arrays are found in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.recorder import (
    Layout,
    NotedCopy,
    NotedLaunch,
    NotedZero,
    RecordingDevice,
    RecordingKernels,
    offset_in_file,
)
from runtime.recording import NULL, Copy, Launch, Place, Pointer, Zero

TABLE = {
    "add": {"parameters": {"x": "pointer", "count": "i32", "by": "fp32", "scratch": "pointer"}}
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    np.arange(5000, dtype=np.uint16).tofile(path)
    return path


def mapped(path: Path, offset: int, *shape: int) -> np.ndarray:
    return np.memmap(path, np.uint16, "r", offset, shape)


@pytest.mark.parametrize("offset", [0, 64, 4096, 5002])
def test_views_of_a_file_are_found_there(file: Path, offset: int) -> None:
    array = mapped(file, offset, 6, 8)
    assert offset_in_file(array, file) == offset
    assert offset_in_file(np.ascontiguousarray(array), file) == offset
    assert offset_in_file(array[2:4], file) == offset + 32
    assert offset_in_file(array.reshape(-1)[5:].view(np.uint8), file) == offset + 10


def test_copies_and_other_files_are_not(file: Path, tmp_path: Path) -> None:
    array = mapped(file, 64, 6, 8)
    for other in (array.copy(), array.astype(np.float32), np.ascontiguousarray(array.T)):
        assert offset_in_file(other, file) is None
    assert offset_in_file(array, tmp_path / "other.bin") is None
    assert offset_in_file(np.zeros(3), file) is None


def test_captured_work_is_noted_and_other_work_fills_memory() -> None:
    device = RecordingDevice()
    kernels = RecordingKernels("glue", TABLE, device)
    first, second = device.allocate(1000), device.allocate(16)
    assert second >= first + 1000 and not second % 256
    values = np.ones(4, np.float32)
    device.upload(second, values)
    device.zero(first + 8, 24)
    device.copy(first, second, 16)  # before the capture, of no interest

    def work() -> None:
        kernels.launch("add", (3,), device.stream, {"x": first + 256, "count": 7, "by": 2})
        device.copy(first + 4, second, 12)
        device.zero(first, 100)

    device.capture(work)
    (graph,) = device.graphs
    assert graph.operations == (
        NotedLaunch(
            "glue", "add", (3, 1, 1), ("pointer", "i32", "fp32", "pointer"), (first + 256, 7, 2, 0)
        ),
        NotedCopy(first + 4, second, 12),
        NotedZero(first, 100),
    )
    blocks = {block.address: block for block in device.blocks}
    assert blocks[first].zeros == [(8, 24)] and not blocks[first].arrays
    assert blocks[second].arrays[0] is values

    layout = Layout(device, {first: Pointer(0, 512), second: Pointer(1, 0)})
    indices: dict[tuple[str, str], int] = {}
    assert [layout.operation(noted, indices) for noted in graph.operations] == [
        Launch(0, (3, 1, 1), (Pointer(0, 768), 7, 2.0, NULL)),
        Copy(Pointer(0, 516), Pointer(1, 0), 12),
        Zero(Place(0, 512, 100)),
    ]
    assert indices == {("glue", "add"): 0}


def test_addresses_of_no_memory_are_a_bug() -> None:
    device = RecordingDevice()
    address = device.allocate(256)
    device.allocate(256)
    for wrong in (address - 1, address + 256):
        with pytest.raises(AssertionError, match="of no block"):
            device.find(wrong)


def test_unknown_arguments_are_refused() -> None:
    kernels = RecordingKernels("glue", TABLE, RecordingDevice())
    arguments: dict[str, Any] = {"y": 1}
    with pytest.raises(ValueError, match=r"has no parameters \['y'\]"):
        kernels.launch("add", (1,), 0, arguments)
