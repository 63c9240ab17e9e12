"""Sets of pictures batch by batch, and runs that are stopped and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.sampling import BatchFolder, Sampler, by_class, sample_classes


def numbered(calls: list[int]) -> Sampler:
    """Pictures that say their label and index; notes where every drawn batch begins."""

    def draw(labels: np.ndarray, first: int) -> np.ndarray:
        calls.append(first)
        index = np.arange(first, first + len(labels))
        return np.stack((labels, index), axis=1).astype(np.uint8)[:, None, None, :]

    return draw


def test_classes_take_turns_and_can_be_put_in_rows() -> None:
    images, labels = sample_classes(numbered([]), num_classes=3, per_class=4, batch_size=5)
    assert labels.tolist() == [0, 1, 2] * 4
    assert images[:, 0, 0, 0].tolist() == labels.tolist()
    assert images[:, 0, 0, 1].tolist() == list(range(12))
    rows = by_class(images, num_classes=3, columns=2)
    assert rows[:, 0, 0, :].tolist() == [[0, 0], [0, 3], [1, 1], [1, 4], [2, 2], [2, 5]]


def test_a_stopped_run_draws_only_what_is_missing(tmp_path: Path) -> None:
    calls: list[int] = []

    def stops(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "set.batches"
    with pytest.raises(KeyboardInterrupt):
        draw = BatchFolder(folder, {"seed": 0}).resuming(numbered(calls))
        sample_classes(draw, 2, 3, batch_size=2, on_batch=stops)
    batches = BatchFolder(folder, {"seed": 0})
    images, _ = sample_classes(batches.resuming(numbered(calls)), 2, 3, batch_size=2)
    assert calls == [0, 2, 4]
    assert images[:, 0, 0, 1].tolist() == list(range(6))
    batches.remove()
    assert not folder.exists()


def test_batches_of_other_settings_are_refused(tmp_path: Path) -> None:
    BatchFolder(tmp_path / "set.batches", {"seed": 0})
    with pytest.raises(ValueError, match="other settings"):
        BatchFolder(tmp_path / "set.batches", {"seed": 1})
