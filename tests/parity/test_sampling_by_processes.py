"""Pictures drawn by several processes are those of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.pipeline import Pipeline
from scripts.sampling import (
    BatchFolder,
    bundle_sampler,
    fill_by_processes,
    parts_of,
    sample_classes,
)


def test_processes_draw_the_same_pictures(
    tiny_bundle: Path, tiny_pipeline: Pipeline, tmp_path: Path
) -> None:
    config = tiny_pipeline.defaults
    expected, labels = sample_classes(bundle_sampler(tiny_pipeline, config, 3), 2, 2, 2)
    batches = BatchFolder(tmp_path / "set.batches", {})
    seen: list[tuple[int, int]] = []
    fill_by_processes(
        batches, tiny_bundle, "ort-cpu", config, 3, parts_of(2, 2, 2), 2,
        on_batch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip

    def is_stored(labels: np.ndarray, first: int) -> np.ndarray:
        raise AssertionError(f"the batch of picture {first} is missing")

    images, again = sample_classes(batches.resuming(is_stored), 2, 2, 2)
    assert seen == [(1, 2), (2, 2)]
    assert labels.tolist() == again.tolist()
    assert np.array_equal(images, expected)
