"""The weights file: layout, views, alignment and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.weights import LARGE, PAGE, WeightsFile


def test_tensors_are_written_where_they_were_placed(tmp_path: Path) -> None:
    weights, tensors = WeightsFile("w.bin"), {}
    for name, shape, dtype in (
        ("odd", (3, 5), torch.float32),
        ("scalar", (), torch.float32),
        ("large", (LARGE // 4,), torch.float32),
        ("half", (7,), torch.float16),
        ("brain", (2, 2), torch.bfloat16),
    ):
        tensors[name] = torch.randn(shape)
        weights.add(name, dtype, shape, lambda t=tensors[name]: t)
    weights.view_rows("rows", "odd", 1, 3)
    path = tmp_path / "w.bin"
    written = dict(weights.write(path))
    data = path.read_bytes()
    assert written["brain"] == len(data) == weights.nbytes
    for name, entry in weights.entries.items():
        raw = torch.frombuffer(
            bytearray(data[entry.offset : entry.offset + entry.nbytes]), dtype=entry.dtype
        )
        expected = tensors["odd"][1:3] if name == "rows" else tensors[name]
        assert torch.equal(raw.view(entry.shape), expected.to(entry.dtype)), name
    assert weights.entries["large"].offset % PAGE == 0
    assert all(e.offset % 64 == 0 for n, e in weights.entries.items() if n != "rows")


def test_transposed_weights_are_written_in_their_new_order(tmp_path: Path) -> None:
    weights, w = WeightsFile("w.bin"), torch.arange(6.0).view(2, 3)
    weights.add("w", torch.float32, (3, 2), lambda: w.T)
    list(weights.write(tmp_path / "w.bin"))
    assert np.fromfile(tmp_path / "w.bin", np.float32).tolist() == [0, 3, 1, 4, 2, 5]


def test_wrong_shape_and_double_names() -> None:
    weights = WeightsFile("w.bin")
    weights.add("w", torch.float32, (2,), lambda: torch.zeros(3))
    with pytest.raises(ValueError, match="already there"):
        weights.add("w", torch.float32, (2,), lambda: torch.zeros(2))


def test_a_tensor_of_another_shape_is_not_written(tmp_path: Path) -> None:
    weights = WeightsFile("w.bin")
    weights.add("w", torch.float32, (2,), lambda: torch.zeros(3))
    with pytest.raises(ValueError, match=r"w is \(3,\), declared as \(2,\)"):
        list(weights.write(tmp_path / "w.bin"))
